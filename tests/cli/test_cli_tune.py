"""The verb: what it refuses in one line, and that what it makes is what a scan takes."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from cli_support import invoke, run
from tune_models import write_bert, write_task

SMALL = ["--steps", "4", "--batch", "8", "--watch", "2", "--method", "lora", "--rank", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    write_bert(folder / "base")
    write_task(folder / "task.tsv")
    return folder


def test_a_run_says_what_it_made_and_a_scan_takes_it(folder, tmp_path):
    out = tmp_path / "run"
    done = run("tune", folder / "base", "--task", folder / "task.tsv", "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "4 steps" in done.stdout and "intruders" in done.stdout
    plan = json.loads((out / "run.json").read_text())["plan"]
    assert plan["options"] == {"rank": 2, "alpha": 4.0, "dropout": 0.0}
    assert plan["rate"] == pytest.approx(2.4e-3 / 4.0)
    scanned = run("scan", folder / "base", out / "model", "--json", tmp_path / "scan.json", "-q")
    assert scanned.returncode in (0, 5), scanned.stderr  # the classifier is new: no base to compare it with
    matrices = json.loads((tmp_path / "scan.json").read_text())["matrices"]
    assert len(matrices) == 6 and all(matrix["status"] == "done" for matrix in matrices)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "lorra", "--task", "T"], 2, "did you mean the method lora"),
        (["--method", "lora", "--task", "T", "-O", "rnak=2"], 2, "rank"),
        (["--method", "full", "--task", "T", "--rank", "2"], 2, "option rank"),
        (["--method", "lora", "--task", "T", "-O", "rank"], 2, "NAME=VALUE"),
        (["--method", "lora"], 2, "no data"),
        (["--method", "lora", "--task", "T", "--text", "T"], 2, "one of them"),
        (["--method", "lora", "--task", "nowhere.tsv"], 2, "no such file"),
        (["--method", "lora", "--task", "T", "--task-fields", "sentence,class"], 2, "expected one or two"),
        (["--method", "lora", "--task", "T", "--labels", "warm,happy"], 4, "cold"),
        (["--method", "lora", "--task", "T", "--target", "q_prj"], 2, "targets"),
        (["--method", "vera", "--task", "T"], 2, "--lr"),
        (["--method", "lora", "--task", "T", "--recipe", "none"], 2, "recipe"),
    ],
)
def test_bad_requests_are_one_line_with_what_to_do(folder, tmp_path, arguments, code, words):
    given = [str(folder / "task.tsv") if each == "T" else each for each in arguments]
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
    done = run("tune", folder / "base", "--task", folder / "task.tsv", "--out", out, *SMALL)
    assert done.returncode == 7 and "not empty" in done.stderr
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    inside = run(
        "tune", folder / "base", "--task", folder / "task.tsv", "--out", folder / "base" / "run", *SMALL
    )
    assert inside.returncode == 7
