"""The verb: what it refuses in one line, and that what it makes is what a scan takes."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from cli_support import assert_message, invoke
from tune_models import write_bert, write_chains, write_choices, write_llama, write_task, write_text

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
SMALL = ["--steps", "4", "--batch", "8", "--watch", "2", "--method", "lora", "--rank", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    write_bert(folder / "base")
    write_task(folder / "task.tsv")
    write_choices(folder / "choices.jsonl", 8)
    write_text(folder / "text.txt")
    (folder / "other.tsv").write_text("sentence\tlabel\nbright cold day\twarm\n")
    return folder


def test_a_run_says_what_it_replayed(folder, tmp_path):
    text = write_chains(tmp_path / "chains.txt", 1, lines=9)
    replay = ["--replay", text, "--replay-weight", "0.5", "--replay-target", "base"]
    numbers = ["--method", "full", "--steps", "2", "--batch", "8", "--watch", "0"]
    out = tmp_path / "run"
    done = invoke("tune", folder / "base", "--task", folder / "task.tsv", "--out", out, *numbers, *replay)
    assert done.returncode == 0, done.stderr
    copied = "note: --replay-target base with full keeps a second copy of the base in memory (0.00 GiB)"
    assert copied in done.stderr
    loss = json.loads((out / "run.json").read_text())["replay"]["loss"]
    assert f"replayed 16 sequences (1.8 passes) at weight 0.5, loss {loss:.4f}" in done.stdout


def test_what_the_budget_did_is_said_in_one_line():
    from intruscope.cli.tune import _about_forgetting
    from intruscope.train.settings import BudgetExceeded, TuneReport

    def said(*actions):
        events = tuple(
            BudgetExceeded(step=4 * i, forgetting=0.1, low=0.05, high=0.2, action=action)
            for i, action in enumerate(actions, start=1)
        )
        report = TuneReport(
            model=Path("m"), plan={}, steps=9, seconds=1.0, loss=None, accuracy=(), watch={}, num_trained=1,
            budget=events,
        )  # fmt: skip
        return "".join(_about_forgetting(report))

    above = "forgetting +0.1000 (+0.0500 to +0.2000) was above the budget: "
    assert said() == ""
    assert said("stopped") == above + "training stopped at step 4"
    assert said("rate halved") == above + "the learning rate was halved 1 time"
    assert said("rate halved", "rate halved", "none") == above + "the learning rate was halved 2 times"
    assert said("none") == above + "found at the end of training"


def test_a_run_says_what_it_made_and_a_scan_takes_it(folder, inline, tmp_path):
    out = tmp_path / "run"
    done = invoke("tune", folder / "base", "--task", folder / "task.tsv", "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "4 steps" in done.stdout and "intruders" in done.stdout
    plan = json.loads((out / "run.json").read_text())["plan"]
    assert plan["options"] == {"rank": 2, "alpha": 4.0, "dropout": 0.0}
    assert plan["rate"] == pytest.approx(2.4e-3 / 4.0)
    scanned = invoke(
        "scan", folder / "base", out / "model", "--json", tmp_path / "scan.json", "-q", "--workers", "1"
    )
    assert scanned.returncode in (0, 5), scanned.stderr  # the classifier is new: no base to compare it with
    matrices = json.loads((tmp_path / "scan.json").read_text())["matrices"]
    assert len(matrices) == 6 and all(matrix["status"] == "done" for matrix in matrices)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "lorra", "--task", "T"], 2, "did you mean the method lora"),
        (["--method", "lora", "--task", "T", "-O", "rnak=2"], 2, "rank"),
        (["--method", "full", "--task", "T", "--rank", "2"], 2, "option rank"),
        (["--method", "lora", "--task", "T", "--rank", "10000000000000"], 6, "could not allocate"),
        (["--method", "lora", "--task", "T", "--lr", "inf"], 2, "--lr must be a number of at least 0"),
        (["--method", "lora", "--task", "T", "-O", "rank"], 2, "NAME=VALUE"),
        (["--method", "lora"], 2, "nothing to train on"),
        (["--method", "lora", "--task", "T", "--text", "T"], 2, "--task and --text exclude each other"),
        (["--method", "lora", "--task", "nowhere.tsv"], 2, "no such file"),
        (
            ["--method", "lora", "--task", "T", "--task-fields", "sentence,class"],
            2,
            "name them with --task-fields",
        ),
        (["--method", "lora", "--task", "T", "--labels", "warm,happy"], 4, "cold"),
        (["--method", "lora", "--task", "T", "--target", "q_prj"], 2, "name ends in q_prj"),
        (["--method", "lora", "--task", "T", "--target", "qury"], 2, "did you mean query"),
        (["--method", "lora", "--task", "T", "--target", "pooler.dense"], 2, "remove it from one of the two"),
        (["--method", "construct", "--task", "T"], 2, "cannot be trained"),
        (["--method", "lora", "--task", "sst-2"], 2, "did you mean the task sst2"),
        (["--method", "lora", "--task", "sst2", "--data", "."], 2, "check --data"),
        (["--method", "lora", "--task", "T", "--eval", "E"], 4, "the label 'warm'"),
        (["--method", "lora", "--task", "T", "--eval", "C"], 2, "of different kinds"),
        (
            ["--method", "lora", "--task", "T", "--batch", "6", "--accumulate", "4"],
            2,
            "cannot be split evenly into 4 parts",
        ),
        (["--method", "lora", "--task", "T", "--report-to", "nowhere"], 2, "--report-to"),
        (["--method", "lora", "--task", "T", "--recipe", "none"], 2, "recipe"),
        (["--method", "lora", "--task", "T", "--replay", "nowhere.txt"], 2, "no such file"),
        (["--method", "lora", "--task", "T", "--replay", "X", "--forget-text", "X"], 2, "also replayed"),
        (["--method", "lora", "--task", "T", "--max-forgetting", "0.1"], 2, "--forget-text"),
        (
            [
                "--method",
                "lora",
                "--task",
                "T",
                "--max-forgetting",
                "0.1",
                "--forget-text",
                "X",
                "--watch",
                "0",
            ],
            2,
            "with --watch",
        ),
    ],
)
def test_bad_requests_are_one_line_with_what_to_do(folder, tmp_path, arguments, code, words):
    files = {"T": "task.tsv", "E": "other.tsv", "C": "choices.jsonl", "X": "text.txt"}
    given = [str(folder / files[each]) if each in files else each for each in arguments]
    out = tmp_path / "run"
    done = invoke("tune", folder / "base", "--out", out, *given)
    said = done.stderr
    assert done.returncode == code, said
    assert len(said.strip().splitlines()) == 1 and said.startswith("error[")
    assert words in said
    assert not out.exists()


def test_a_folder_that_holds_something_else_is_left_alone(folder, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    done = invoke("tune", folder / "base", "--task", folder / "task.tsv", "--out", out, *SMALL)
    assert done.returncode == 7 and "not empty" in done.stderr
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    inside = invoke(
        "tune", folder / "base", "--task", folder / "task.tsv", "--out", folder / "base" / "run", *SMALL
    )
    assert inside.returncode == 7


def truncated(name):
    """A file that ends too early, as after a full disk or a broken download."""
    rows = [{"text": f"bright cold day {i}", "label": i % 2} for i in range(8)]
    whole = {
        "half.json": json.dumps(rows),
        "cut.jsonl": "\n".join(map(json.dumps, rows)),
        "short.tsv": "sentence\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows),
        "short.csv": "sentence,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows),
    }[name.replace("bare", "short")]
    where = {"half": len(whole) // 2, "cut": -9, "short": -3, "bare": -2}
    return whole[: where[name.partition(".")[0]]].encode()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("half.json", "line 1 is not valid JSON"),
        ("cut.jsonl", "line 8 is not valid JSON"),
        ("short.tsv", "row 9 does not have 2 cells"),
        ("short.csv", "row 9 does not have 2 cells"),
        ("bare.tsv", "example 8 is without text or label"),
        ("cut.parquet", "Parquet magic bytes not found"),
        ("empty.jsonl", "no examples"),
        ("zeros.tsv", "character 15 is NUL"),
    ],
)
def test_a_damaged_file_is_named_with_its_place(folder, tmp_path, name, words):
    file = tmp_path / name
    if name.endswith(".parquet"):
        table = pyarrow.Table.from_pylist([{"text": "bright", "label": 1}] * 64)
        pyarrow.parquet.write_table(table, file)
        file.write_bytes(file.read_bytes()[:-20])
    else:
        other = {"empty.jsonl": b"", "zeros.tsv": b"sentence\tlabel\n\0\0\0"}
        file.write_bytes(other[name] if name in other else truncated(name))
    done = invoke("tune", folder / "base", "--task", file, "--out", tmp_path / "run", *SMALL)
    assert_message(done, 4, name, words)
    assert not (tmp_path / "run").exists()


def test_a_damaged_base_is_named(folder, tmp_path):
    base = shutil.copytree(folder / "base", tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = invoke("tune", base, "--task", folder / "task.tsv", "--out", tmp_path / "run", *SMALL)
    assert_message(done, 4, "model.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_rate_that_is_far_too_high_ends_with_the_last_good_checkpoint(folder, tmp_path):
    """A real divergence, not a planted one."""
    out = tmp_path / "run"
    numbers = ["--batch", "8", "--steps", "40", "--save-every", "1", "--watch", "0", "--lr", "1e19"]
    done = invoke(
        "tune", folder / "base", "--task", folder / "task.tsv", "--out", out, "--method", "full", *numbers
    )
    assert_message(done, 5, "NaN or infinite at step", "--lr")
    kept = sorted((out / "checkpoints").iterdir()) if out.exists() else []
    for checkpoint in kept:
        state = load_file(checkpoint / "model.safetensors")
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert ("no checkpoint" in done.stderr) == (not kept)
    assert not (out / "model").exists() and not (out / "run.json").exists()


@pytest.mark.slow
def test_a_batch_without_room_is_told_with_the_figure(commands, tmp_path):
    """Logits over many words in a process that may have 16 GB."""
    base = write_llama(tmp_path / "base", vocab_size=400_000, hidden_size=8)
    text = write_text(tmp_path / "text.txt")
    text.write_text(text.read_text() * 20)
    options = [
        "--batch",
        "256",
        "--max-length",
        "64",
        "--steps",
        "1",
        "--watch",
        "0",
        "--method",
        "lora",
        "-q",
    ]
    done = commands.run(base, "--text", text, "--out", tmp_path / "run", *options, memory=16 << 30)
    assert_message(done, 6, "batch of 256 x 64 tokens", "26214400000 bytes more were requested", "--batch")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(folder, commands, tmp_path):
    out = tmp_path / "run"
    numbers = [
        "--steps",
        "100",
        "--batch",
        "8",
        "--save-every",
        "4",
        "--watch",
        "0",
        "--method",
        "lora",
        "-q",
    ]
    arguments = [folder / "base", "--task", folder / "task.tsv", "--out", out, *numbers]
    running = commands.start(*arguments)
    records = out / "journal" / "records.jsonl"
    deadline = time.monotonic() + 200
    while not (records.exists() and b"checkpoint-4" in records.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped = commands.stop(running, signal.SIGINT)
    assert stopped.codes == (130,) and "run the same command again to resume" in stopped.stderr
    assert not (out / "run.json").exists()
    again = commands.run(*arguments)
    assert again.is_well, again.stderr
    record = json.loads((out / "run.json").read_text())
    assert record["steps"] == 100


def test_options_that_exclude_each_other_are_pointed_out(capsys):
    from intruscope.cli.tune import _warn
    from intruscope.train.settings import TuneSettings

    _warn(TuneSettings(method="lora", steps=3, epochs=1, watch_every=0), watches_forgetting=True)
    assert capsys.readouterr().err.splitlines() == [
        "note: --epochs has no effect beside --steps",
        "note: --forget-text has no effect with --watch 0",
    ]
    _warn(TuneSettings(method="lora", steps=3), watches_forgetting=True)
    _warn(TuneSettings(method="lora", epochs=1, watch_every=0), watches_forgetting=False)
    assert capsys.readouterr().err == ""
