"""Two processes of one run: one writes, both agree, and what comes of it is what one process makes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_watch import assert_equals_scan, scanned
from train_models import llama
from tune_models import (
    without_dropout,
    write_bert,
    write_chains,
    write_choices,
    write_gpt2,
    write_task,
    write_text,
)

from intruscope.cli.main import main
from intruscope.errors import MalformedInput, ResourceExhausted, UsageError
from intruscope.train.look_file import read_looks
from intruscope.train.processes import join, leave, report_once

NUMBERS = {"rank": 2, "lr": 5e-3, "steps": 12, "batch": 8, "save-every": 4, "watch": 4}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


def tune(base, data, out, **changes):
    numbers = {"method": "lora", **NUMBERS, **changes}
    options = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
    return [base, *data, "--out", out, "-q", *options]


def trained(out):
    return load_file(out / "model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    # Each process draws dropout for its own share of a batch: nothing to compare with one process.
    without_dropout(write_bert(folder / "bert"))
    without_dropout(write_gpt2(folder / "gpt2"))
    write_task(folder / "task.tsv")
    write_choices(folder / "choices.jsonl", 48)
    write_text(folder / "text.txt")
    write_chains(folder / "chains.txt", 1, lines=21)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "endings"])
def test_two_processes_make_what_one_makes_of_the_same_batches(kind, files, commands, tmp_path):
    base, name = {"classification": ("bert", "task.tsv"), "endings": ("gpt2", "choices.jsonl")}[kind]
    data = ["--task", str(files / name), "--eval", str(files / name)]
    data += ["--replay", str(files / "chains.txt"), "--replay-weight", "0.5"]
    if kind == "classification":
        data += ["--forget-text", str(files / "text.txt")]
    else:
        data += ["--replay-target", "base"]
    one, two = tmp_path / "one", tmp_path / "two"
    for out, processes in ((one, 1), (two, 2)):
        done = commands.run(*tune(files / base, data, out), processes=processes)
        assert done.is_well, done.stderr[-3000:]
    first, second = trained(one), trained(two)
    assert set(first) == set(second)
    start = max(float(first[key].abs().max()) for key in first)
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-4 * start)
    records = [json.loads((out / "run.json").read_text()) for out in (one, two)]
    assert [record["plan"]["processes"] for record in records] == [1, 2]
    assert records[0]["accuracy"] == pytest.approx(records[1]["accuracy"])
    for name in ("loss", "replay_loss"):
        losses = [[entry[name] for entry in record["log"] if name in entry] for record in records]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0]
    assert records[0]["replay"]["num_predicted"] == records[1]["replay"]["num_predicted"] > 0
    looks = [read_looks(out / "intruders" / "looks.jsonl")[1] for out in (one, two)]
    assert [look.step for look in looks[1]] == [0, 4, 8, 12]
    assert [len(look.intruders) for look in looks[0]] == [len(look.intruders) for look in looks[1]]
    assert not (two / "checkpoints").exists()
    if kind == "endings":
        told = commands.run(*tune(files / base, data, two), processes=2)
        assert told.codes == (7, 7) and told.stderr.count("error[output]") == 1


@pytest.mark.slow
def test_two_processes_killed_in_the_middle_end_as_if_they_had_not_been(files, commands, tmp_path):
    data = ["--task", files / "task.tsv"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    again = tune(files / "bert", data, killed, steps=16)
    assert commands.run(*tune(files / "bert", data, whole, steps=16), processes=2).is_well
    running = commands.start(*again, processes=2)
    records = killed / "journal" / "records.jsonl"
    deadline = time.monotonic() + 200
    while not (records.exists() and b"checkpoint-4" in records.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert commands.stop(running).codes == (-signal.SIGKILL, -signal.SIGKILL)
    assert not (killed / "run.json").exists()
    other = commands.run(*again)
    assert other.codes == (7,) and "processes" in other.stderr  # another number of them is another run
    done = commands.run(*again, processes=2)
    assert done.is_well, done.stderr[-3000:]
    first, second = trained(whole), trained(killed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [look.step for look in read_looks(killed / "intruders" / "looks.jsonl")[1]] == [0, 4, 8, 12, 16]


@pytest.mark.slow
def test_two_processes_see_what_a_scan_of_their_checkpoint_finds(commands, tmp_path):
    """The watch in anybody's Trainer: the two share the work of a look, and write it once."""
    llama().save_pretrained(tmp_path / "base")
    script = Path(__file__).with_name("watched_run.py")
    done = commands.run(tmp_path / "run", script=script, processes=2)
    assert done.is_well, done.stderr[-3000:]
    _, looks = read_looks(tmp_path / "run" / "intruders" / "looks.jsonl")
    assert [look.step for look in looks] == [0, 4, 8]
    assert looks[-1].intruders
    for look in looks[1:]:
        assert_equals_scan(look, scanned(tmp_path / "base", tmp_path / "run" / f"checkpoint-{look.step}"))


@pytest.mark.slow
def test_a_batch_that_two_cannot_share_is_refused_once(files, tmp_path):
    arguments = tune(files / "bert", ["--task", files / "task.tsv"], tmp_path / "run", batch=7)
    done = subprocess.run(
        [*LAUNCHER, "-m", "intruscope", "tune", *map(str, arguments)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stderr.count("error[usage]") == 1 and "1 for each of 2 processes" in done.stderr
    assert re.search(r"exitcode +: 2\b", done.stderr), done.stderr[-3000:]  # what torch's launcher saw
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_methods_do_between_steps_is_the_same_in_both_processes(commands, tmp_path):
    """A run compares the processes' weights at each checkpoint: a draw or a mask of one alone ends it."""
    write_bert(tmp_path / "bert")  # with dropout: the processes' random states part
    write_task(tmp_path / "task.tsv")
    (tmp_path / "runs").mkdir()
    methods = ["full", "chain", "adalora", "sora", "prilora", "lora_experts", "vera"]
    script = Path(__file__).with_name("tuned_by_methods.py")
    done = commands.run(tmp_path, *methods, script=script, processes=2)
    assert done.is_well, done.stderr[-3000:]
    for method in methods:
        assert json.loads((tmp_path / "runs" / method / "run.json").read_text())["steps"] == 6
    assert all((tmp_path / f"left-{rank}").exists() for rank in range(2))


@pytest.mark.parametrize(
    ("world", "rank", "speaks"), [(None, None, True), (None, "1", True), ("2", "0", True), ("2", "1", False)]
)
def test_what_every_process_meets_is_told_by_the_first_alone(world, rank, speaks, monkeypatch):
    for name, value in (("WORLD_SIZE", world), ("RANK", rank)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    for kind, alike in ((UsageError, True), (MalformedInput, True), (ResourceExhausted, False)):
        with pytest.raises(kind) as caught, report_once():
            raise kind("got it", remedy="leave it")
        assert caught.value.already_reported == (alike and not speaks)


def test_a_process_group_that_was_there_before_is_left_alone():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert join() == 1
        for code in (0, 5):
            leave(code)  # would end these tests
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_who_leaves_an_error_to_the_first_process_lets_it_speak(rank, tmp_path, monkeypatch, capsys):
    """A launcher ends all processes once one has left: also the first, before it has said why."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    waited, signals = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr())))
    base, out = str(tmp_path / "none"), str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["intruscope", "tune", base, "--method", "lora", "--out", out])
    try:
        with pytest.raises(SystemExit) as left:
            main()
        ending = [signal.getsignal(number) for number in signals]
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
    assert left.value.code == 2
    said = capsys.readouterr().err
    if rank == "0":
        assert "error[usage]" in said and waited == []
    else:
        assert said == "" and len(waited) == 1
        assert ending == [signal.SIG_DFL] * 2  # the launcher's signal, or Ctrl-C, ends the wait, silently
