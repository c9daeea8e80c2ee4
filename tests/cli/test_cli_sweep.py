"""``intruscope sweep``: what it writes, what it refuses, and that it goes on where it was stopped."""

import json
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_support import assert_message, eventually, fingerprint, invoke, num_records

sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))
from sweep_models import write_adapter, write_base, write_task, write_text

from processes import alive

FEW = ("--strengths", "0.3,0.7", "--controls", "intruders,matched_change,uniform", "--resamples", "200")
# transformers warns of what PEFT asks it for.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with ``base``, ``adapter``, ``text.txt`` and ``task.tsv``."""
    folder = tmp_path_factory.mktemp("sweep")
    write_adapter(folder / "adapter", write_base(folder / "base"), size=0.9)
    write_text(folder / "text.txt")
    write_task(folder / "task.tsv")
    return folder


def arguments(files, *more):
    return (
        "sweep", files / "base", files / "adapter", "--workers", "1",
        "--task", files / "task.tsv", "--text", files / "text.txt", *more,
    )  # fmt: skip


def timeless(path):
    report = json.loads(path.read_text())
    report.pop("environment")
    return report


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """One run with every output, its folder, and what the inputs were before it."""
    out = tmp_path_factory.mktemp("out")
    before = fingerprint(files)
    ran = invoke(
        *arguments(
            files, *FEW, "--json", out / "sweep.json", "--html", out / "sweep.html",
            "--parquet", out / "sweep.parquet", "--plots", out / "plots", "--work", out / "work",
        )
    )  # fmt: skip
    return ran, out, before


def test_it_writes_everything_and_touches_no_input(done, files):
    ran, out, before = done
    assert ran.returncode == 0, ran.stderr
    assert fingerprint(files) == before
    data = json.loads((out / "sweep.json").read_text())
    assert data["schema"] == "intruscope.sweep/1"
    assert [(cell["control"], cell["strength"]) for cell in data["cells"]] == [
        (control, strength)
        for control in ("intruders", "matched_change", "uniform")
        for strength in (0.3, 0.7)
    ]
    assert data["num_intruders"] > 0
    assert data["task"]["num_items"] == 20
    assert data["text"]["num_items"] == 24
    assert pq.read_table(out / "sweep.parquet").num_rows == 6
    assert "intruscope" in (out / "sweep.html").read_text().lower()
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["tradeoff.png", "tradeoff.svg"]
    # Models are not among what it wrote.
    assert not list(out.rglob("*.safetensors"))


def test_it_says_the_sentence_and_the_grid(done):
    ran, out, _ = done
    (advice,) = json.loads((out / "sweep.json").read_text())["recommendations"]
    assert " ".join(advice["sentence"].split()) in " ".join(ran.stdout.split())
    assert ran.stdout.count("update shrunk, equal change") == 1
    # Everything fits 100 columns but the commands, which are never wrapped.
    assert max(len(line) for line in ran.stdout.splitlines() if "intruscope repair" not in line) <= 100


def test_json_on_standard_output_is_alone_there(done, files):
    _, out, _ = done
    ran = invoke(*arguments(files, *FEW, "--json", "-", "--work", out / "work"))
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    told.pop("environment")
    assert told == timeless(out / "sweep.json")


def test_a_stopped_sweep_goes_on_and_gives_the_same(commands, done, files, tmp_path):
    """SIGINT after some cells; the same command finishes with the report of a run that was never stopped."""
    _, out, _ = done
    verb, *options = arguments(files, *FEW, "--work", tmp_path / "work", "--json", tmp_path / "s.json")
    running = commands.start(*options, verb=verb)
    ((pid, _),) = running
    eventually(lambda: num_records(tmp_path / "work" / "sweep") >= 2 or not alive(pid))
    stopped = commands.stop(running, signal.SIGINT)
    if stopped.returncode == 130:  # not already done: a tiny model's cells take milliseconds
        assert stopped.stderr.rstrip().endswith("run the same command again to resume")
        assert not (tmp_path / "s.json").exists()
    kept = num_records(tmp_path / "work" / "sweep")
    assert kept >= 2
    ran = invoke(*arguments(files, *FEW, "--work", tmp_path / "work", "--json", tmp_path / "s.json"))
    assert ran.returncode == 0, ran.stderr
    assert timeless(tmp_path / "s.json") == timeless(out / "sweep.json")
    assert num_records(tmp_path / "work" / "sweep") == 8


@pytest.mark.parametrize(
    ("more", "code", "parts"),
    [
        (("--strengths", "0.5,nan"), 2, ["--strengths must be a number of at least 0, not 'nan'"]),
        (("--strengths", "half"), 2, ["--strengths must be a number of at least 0, not 'half'"]),
        (("--strengths", ""), 2, ["strengths is empty"]),
        (("--controls", "uniform"), 2, ["lack 'intruders'"]),
        (("--k", "all"), 2, ["--k must be a whole number", "not 'all'"]),
        (("--epsilon", "0"), 2, ["--epsilon must be a number above 0"]),
        (("--max-cost", "-1"), 2, ["--max-cost must be a number of at least 0, not '-1'"]),
        (("--which", "no.such.matrix:0"), 2, ["no.such.matrix"]),
        (("--labels", "a,b,c"), 4, ["task.tsv", "the model has 2"]),
        (("--json", "OUT/a.json", "--html", "OUT/a.json"), 7, ["two outputs"]),
        (("--json", "FILES/base/a.json"), 7, ["lies in the input"]),
        (("--json", "FILES/text.txt"), 7, ["text.txt"]),
        (("--work", "FILES/adapter/work"), 7, ["lies in the input"]),
    ],
)
def test_what_makes_no_sense_is_one_line(more, code, parts, files, tmp_path):
    more = [part.replace("OUT", str(tmp_path)).replace("FILES", str(files)) for part in more]
    before = fingerprint(files)
    assert_message(invoke(*arguments(files, *FEW, *more)), code, *parts)
    assert fingerprint(files) == before


def test_no_task_no_text_no_example(files, tmp_path):
    given = ("sweep", files / "base", files / "adapter")
    assert_message(invoke(*given, "--text", files / "text.txt"), 2, "Missing option '--task'")
    assert_message(invoke(*given, "--task", files / "task.tsv"), 2, "Missing option '--text'")
    few = write_task(tmp_path / "few.tsv", num_rows=3)
    ran = invoke(*given, *FEW, "--task", few, "--text", files / "text.txt", "--workers", "1")
    assert_message(ran, 2, "needs at least 4 examples, this one has 3")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    ran = invoke(*given, "--task", files / "task.tsv", "--text", empty)
    assert ran.returncode in (2, 4)
    assert "empty.txt" in ran.stderr
