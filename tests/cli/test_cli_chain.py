"""The verb: what it refuses in one line, and a whole chain from named tasks to table, JSON and pictures."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sequence"))
sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))
from cli_support import invoke
from named_files import write_named
from sequence_models import write_base

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.usefixtures("inline"),
]
SMALL = ["--steps", "2", "--batch", "2", "--max-length", "16", "--method", "lora", "--rank", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    write_base(folder / "base")
    write_named(folder / "data")
    return folder


def test_a_chain_says_what_became_of_earlier_tasks(folder, tmp_path):
    out = tmp_path / "out"
    text = tmp_path / "text.txt"
    text.write_text("red cat blue dog\nbird green red red\ncat dog cat bird\n")
    done = invoke(
        "chain", folder / "base", "--data", folder / "data", "--tasks", "sst2,mnli,winogrande",
        "--out", out, "--text", text, "--json", tmp_path / "chain.json", "--workers", "1", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "arlier tasks" in done.stdout and "after winogrande" in done.stdout
    assert "forgetting" in done.stdout and "pictures are in" in done.stderr
    data = json.loads((tmp_path / "chain.json").read_text())
    assert data == json.loads((out / "chain.json").read_text())
    assert data["schema"] == "intruscope.chain/1" and data["tasks"] == ["sst2", "mnli", "winogrande"]
    assert [(c["stage"], c["task"]) for c in data["cells"][:4]] == [
        (0, "sst2"), (0, "mnli"), (0, "winogrande"), (1, "sst2"),
    ]  # fmt: skip
    assert data["plan"]["options"] == {"rank": 2, "alpha": 4.0, "dropout": 0.0}
    assert len(data["stages"]) == 3 and (out / data["model"] / "model.safetensors").exists()
    assert (out / "pictures" / "accuracy-matrix.png").exists()
    scanned = invoke("scan", folder / "base", out / data["model"], "-q", "--json", tmp_path / "scan.json",
                     "--workers", "1")  # fmt: skip
    assert scanned.returncode == 0, scanned.stderr
    totals = json.loads((tmp_path / "scan.json").read_text())["totals"]
    assert totals["num_intruders"] == data["stages"][-1]["weights"]["num_intruders"]
    again = invoke(
        "chain", folder / "base", "--data", folder / "data", "--tasks", "sst2,mnli,winogrande",
        "--out", out, *SMALL,
    )  # fmt: skip
    assert again.returncode == 7 and "finished chain" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tasks", "sst2,mnly"], 2, "did you mean the task mnli"),
        (["--tasks", "sst2"], 2, "at least two"),
        (["--tasks", ","], 2, "at least two"),
        (["--tasks", "sst2,mnli,sst2"], 2, "sst2 is listed twice"),
        (["--tasks", "sst2,qqp"], 2, "check --data"),
        (["--method", "lorra"], 2, "did you mean the method lora"),
        (["--method", "construct"], 2, "construct"),
        (["--method", "lora_experts"], 2, "lora_experts"),
        (["--method", "pissa", "--between", "keep"], 2, "leave --between out"),
        (["--method", "lora", "-O", "rnak=3"], 2, "rank"),
        (["--between", "mix"], 2, "between"),
        (["--lr", "-1"], 2, "lr"),
        (["--head-examples", "2"], 2, "raise --head-examples"),
        (["--text", "nowhere.txt"], 2, "nowhere.txt"),
        (["--json", "DATA/sst2/dev.tsv"], 7, "input"),
        (["--out", "DATA/out"], 7, "input"),
        (["--target", "q_prj"], 2, "no module's name ends in q_prj"),
    ],
)
def test_bad_requests_are_one_line_with_what_to_do(folder, tmp_path, arguments, code, words):
    given = [each.replace("DATA", str(folder / "data")) for each in arguments]
    usual = {"--tasks": "sst2,mnli", "--method": "lora", "--out": str(tmp_path / "out"), "--steps": "2",
             "--max-length": "16"}  # fmt: skip
    usual = {name: value for name, value in usual.items() if name not in given}
    rest = [part for pair in usual.items() for part in pair]
    done = invoke("chain", folder / "base", "--data", folder / "data", *rest, *given)
    said = done.stderr.strip()
    assert done.returncode == code, said
    assert said.startswith("error[") and words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out" / "chain.json").exists()
