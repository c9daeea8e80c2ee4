"""What happens when something goes wrong in the middle: nothing is lost, nothing is left running."""

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import (
    COMMAND,
    assert_message,
    eventually,
    fingerprint,
    invoke,
    matrices,
    name_of,
    num_records,
    run,
    start,
    timeless,
    write_model,
)

from forks import Server
from intruscope import RunOptions, ScanSettings, scan
from intruscope.engine.journal import Journal
from intruscope.errors import MalformedInput
from processes import alive, children

COUNT = 40


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough matrices to be stopped between any two, and what an undisturbed scan says of them."""

    class Many:
        folder = tmp_path_factory.mktemp("many")
        base = write_model(folder / "base", matrices(COUNT))
        tuned = write_model(folder / "tuned", matrices(COUNT, change=0.4))
        arguments = ("scan", base, tuned, "-q", "--workers", "1")
        json = folder / "whole.json"
        done = run(*arguments, "--json", json, "--work", folder / "work")

    assert Many.done.returncode == 0, Many.done.stderr
    return Many


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """The layers of ``models`` and one more that takes far longer than any test waits."""
    folder = tmp_path_factory.mktemp("slow")
    generator = torch.Generator().manual_seed(1)
    extra = torch.randn(2, 1500, 1500, generator=generator)
    name = f"{name_of(9)}.weight"
    return (
        write_model(folder / "base", {**matrices(3), name: extra[0]}),
        write_model(folder / "tuned", {**matrices(3, change=1.0), name: extra[1]}),
    )


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Asks ``cli_forks`` for a start (arguments) or an exit code (process id)."""
    errors = tmp_path_factory.mktemp("forks") / "errors"
    script = Path(__file__).with_name("cli_forks.py")
    with errors.open("w") as stream, Server(script, stderr=stream, OMP_NUM_THREADS="1") as ask:
        ask.errors = errors
        yield ask


def test_killed_at_twenty_moments_and_resumed_is_the_same_as_never_killed(many, forks, tmp_path):
    """One journal lives through all of them; at the end nothing tells it from an undisturbed one."""
    generator = random.Random(0)
    work, output = tmp_path / "work", tmp_path / "r.json"
    arguments = [*many.arguments, "--json", output, "--work", work]
    num_killed_inside = 0
    for trial in range(20):
        before = num_records(work)
        pid = forks(arguments)
        if trial % 5:  # most after some more work; the rest at any moment, start-up included
            eventually(lambda pid=pid, before=before: num_records(work) > before or not alive(pid))
            time.sleep(generator.uniform(0.0, 0.01))
        else:
            time.sleep(generator.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        if forks(pid) == 0:  # it was faster: begin again
            assert timeless(output) == timeless(many.json)
            output.unlink()
            shutil.rmtree(work)
            continue
        assert not output.exists()
        assert num_records(work) >= before
        num_killed_inside += 0 < num_records(work) < COUNT
    assert num_killed_inside >= 12
    assert forks(forks(arguments)) == 0, forks.errors.read_text()
    assert timeless(output) == timeless(many.json)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_leaves_in_time_with_its_code_and_leaves_nothing_running(slow, tmp_path, number, code, word):
    work, output = tmp_path / "work", tmp_path / "r.json"
    process = start("scan", *slow, "--work", work, "--json", output, "--workers", "1")
    eventually(lambda: num_records(work) == 3)  # the fourth holds LAPACK for longer than anyone waits
    workers = children(process.pid)
    assert workers
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == code
    assert err == f"{word}; run the same command again to resume\n"
    assert not any(map(alive, workers))
    assert not output.exists()
    assert num_records(work) == 3


def test_a_deadline_says_unfinished_and_changes_no_other_verdict(slow, models, tmp_path):
    output, work = tmp_path / "r.json", tmp_path / "work"
    settings = ["--null", "1", "--work", work, "--workers", "1"]
    done = run("scan", *slow, "-q", *settings, "--deadline", "1.5", "--json", output)
    assert_message(done, 5, "error[incomplete]", "only 3 of 4 matrices")
    report = timeless(output)
    assert [m["status"] for m in report["matrices"]] == ["done", "done", "done", "unfinished"]
    (finding,) = report["matrices"][3]["findings"]
    assert (finding["code"], finding["message"]) == ("unfinished", "not finished within 1.5 s")
    assert report["matrices"][3]["verdicts"] == []
    others = scan(*map(str, models), settings=ScanSettings(null_trials=1), options=RunOptions(workers=0))
    assert [m["verdicts"] for m in report["matrices"][:3]] == [
        list(m.sides[0].verdicts) for m in others.matrices
    ]
    assert num_records(work) == 3, "what was not finished is tried again"


def test_a_killed_worker_costs_one_retry_and_no_result(many, tmp_path):
    work, output = tmp_path / "work", tmp_path / "r.json"
    process = start(*many.arguments, "--json", output, "--work", work)
    eventually(lambda: num_records(work) > 2)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert timeless(output) == timeless(many.json)


def shrink(path):
    os.truncate(path, path.stat().st_size - 64)


def replace(path):
    twin = path.with_name("twin")
    shutil.copyfile(path, twin)
    twin.replace(path)


def rewrite(path):
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x00")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [shrink, replace, rewrite])
def test_an_input_that_changes_during_the_scan_ends_it(models, tmp_path, change):
    tuned = shutil.copytree(models[1], tmp_path / "tuned")
    seen = []

    def after_the_first(event):
        if event.done == 1 and not seen:
            seen.append(event)
            change(tuned / "model.safetensors")

    options = RunOptions(workers=0, work_dir=tmp_path / "work")
    with pytest.raises(MalformedInput, match="changed .* since the scan was planned") as caught:
        scan(str(models[0]), str(tuned), options=options, on_progress=after_the_first)
    assert caught.value.exit_code == 4
    assert caught.value.file == tuned / "model.safetensors"
    assert caught.value.tensor == f"{name_of(1)}.weight"
    assert num_records(tmp_path / "work") == 1


def needs(*command):
    """Skip by name where the machine does not have or allow a tool."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    if subprocess.run(command, check=False, capture_output=True, timeout=20).returncode:
        pytest.skip(f"{' '.join(command)} is not allowed here")


def test_a_full_disk_keeps_what_was_there_and_the_scan_goes_on_later(many, tmp_path):
    needs("unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    script = """
    set -u; folder=$1; shift
    mount -t tmpfs -o size=64k tmpfs "$folder"
    echo earlier > "$folder/r.json"
    "$@"; echo "code $?"
    echo "kept $(cat "$folder/r.json") $(ls -A "$folder" | tr '\\n' ' ')"
    echo "records $(wc -l < "$folder/work/records.jsonl")"
    mount -o remount,size=16m "$folder"
    "$@"; echo "code $?"
    cat "$folder/r.json" > "$folder.json"
    """
    folder = tmp_path / "small"
    folder.mkdir()
    command = [*COMMAND, *many.arguments, "--json", folder / "r.json", "--work", folder / "work"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, [folder, *command])],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["code 6", "kept earlier r.json work "], done.stderr
    assert 0 < int(lines[2].split()[1]) < COUNT
    assert lines[3] == "code 0", done.stderr
    message, note = done.stderr.splitlines()
    assert re.fullmatch(r"error\[resources\] .*No space left.*intact; free some space.*", message)
    assert note == "note: 1 damaged record of an earlier run is computed again"
    assert timeless(tmp_path / "small.json") == timeless(many.json)


def test_of_twenty_simultaneous_starts_one_goes_on(slow, forks, tmp_path):
    work = tmp_path / "work"
    pids = [forks(["scan", *slow, "-q", "--work", work]) for _ in range(20)]
    try:
        eventually(lambda: sum(map(alive, pids)) <= 1)
        (winner,) = [pid for pid in pids if alive(pid)]
        assert {forks(pid) for pid in pids if pid != winner} == {7}
        assert forks.errors.read_text().count("another run is using this journal; wait for it") == 19
        eventually(lambda: num_records(work) == 3)
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("allocate", "figure"),
    [
        (lambda: torch.empty(1 << 50), "could not allocate 4,194,304.00 GiB"),
        (lambda: np.empty(1 << 50), "could not allocate 8.00 PiB"),
        (lambda: torch.empty(1 << 62, 1 << 62), "this process already held"),
        (lambda: bytearray(1 << 62), "this process already held"),
    ],
    ids=["torch", "numpy", "sizes", "python"],
)
def test_an_allocation_that_fails_is_no_fault_of_ours(models, monkeypatch, allocate, figure):
    monkeypatch.setattr("intruscope.weights.names.parse_name", lambda _: allocate())
    monkeypatch.setattr("intruscope.weights.source.parse_name", lambda _: allocate())
    assert_message(invoke("scan", *models, "-q"), 6, "out of memory", figure, "more memory")


def test_two_scans_of_one_pair_share_nothing_but_the_cache(models, tmp_path):
    """The second cannot use the first one's journal, and needs none."""
    environment = {**os.environ, "INTRUSCOPE_CACHE": str(tmp_path / "cache")}
    arguments = ["scan", *models, "-q", "--workers", "1", "--json"]
    assert run(*arguments, tmp_path / "a.json", env=environment).returncode == 0
    (folder,) = (tmp_path / "cache" / "scans").iterdir()
    with Journal(folder, json.loads((folder / "plan.json").read_bytes())):
        done = run(*arguments, tmp_path / "b.json", env=environment)
    assert done.returncode == 0
    note = "note: this run cannot be resumed if it is interrupted: another run is using this journal\n"
    assert done.stderr == note
    assert timeless(tmp_path / "b.json") == timeless(tmp_path / "a.json")


def device_without_room(folder):
    """Like /dev/full, but our own: a fault would replace it."""
    path = folder / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.write_bytes(b"")
    except OSError:
        pytest.skip("devices cannot be made here")
    return path


@pytest.mark.parametrize("option", ["--json", "--csv", "--parquet", "--html"])
def test_an_output_that_takes_nothing_fails(scanned, tmp_path, option):
    full = device_without_room(tmp_path)
    beside = ["--json", tmp_path / "maps.json"] if option in ("--csv", "--parquet") else []
    done = invoke(*scanned.again, "-q", *beside, option, full)
    assert_message(done, 6, f"{full}: ", "No space left on device")
    assert full.is_char_device()


@pytest.mark.parametrize("arguments", [["methods"], ["--version"], ["--help"], ["cache"]])
def test_standard_output_that_takes_nothing_fails(tmp_path, arguments):
    full = device_without_room(tmp_path)
    environment = {**os.environ, "INTRUSCOPE_CACHE": str(tmp_path)}
    with full.open("w") as stream:
        command = [*COMMAND, *arguments]
        done = subprocess.run(
            command,
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env=environment,
        )
    assert_message(done, 6, "No space left on device")


def test_inputs_are_opened_read_only_and_no_connection_is_made(models, tmp_path):
    needs("strace", "-f", "true")
    log = tmp_path / "log"
    before = fingerprint(models[0].parent)
    command = ["strace", "-f", "-qq", "-s", "300", "-e", "trace=%file,%network", "-o", log]
    command += [*COMMAND, "scan", *models, "-q", "--workers", "1", "--json", tmp_path / "r.json"]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    touching = [line for line in calls if f'"{models[0].parent}' in line]
    opened = [line for line in touching if re.search(r"\bopen(at2?)?\(", line)]
    read = {line.split('"')[1] for line in opened if "O_DIRECTORY" not in line}
    assert read == {str(folder / name) for folder in models for name in ("config.json", "model.safetensors")}
    for line in opened:
        assert "O_RDONLY" in line
        assert not re.search("O_CREAT|O_TRUNC|O_APPEND|O_WRONLY|O_RDWR", line)
    harmless = re.compile(r"\b(open(at2?)?|l?stat|newfstatat|statx|readlink(at)?|f?access(at2?)?|execve)\(")
    assert not [line for line in touching if not harmless.search(line)]
    assert not [line for line in calls if re.search(r"\bconnect\(.*AF_INET", line)]
    assert fingerprint(models[0].parent) == before


def test_a_scan_needs_no_network(models):
    needs("unshare", "-rn", "true")
    command = ["unshare", "-rn", *COMMAND, "scan", *map(str, models), "-q", "--workers", "1"]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def test_inputs_may_be_read_only(models, tmp_path):
    """On a read-only mount, for permissions mean nothing to root."""
    needs("unshare", "-rm", "mount", "--bind", str(tmp_path), str(tmp_path))
    script = """
    mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99
    touch "$1/x" 2>/dev/null && exit 98
    shift; exec "$@"
    """
    inputs = models[0].parent
    command = [*COMMAND, "scan", *models, "-q", "--workers", "1", "--json", tmp_path / "r.json"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, [inputs, *command])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "r.json").read_text())["matrices"]) == 3
