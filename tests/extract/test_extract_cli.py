"""``intruscope extract`` from outside: what it writes and says, how it refuses, and that it goes on."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from cli_support import (
    COMMAND,
    assert_message,
    eventually,
    fingerprint,
    invoke,
    matrices,
    name_of,
    write_model,
)

from processes import alive

pytestmark = pytest.mark.usefixtures("inline")
COUNT = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Six matrices, each with a planted direction, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("cli")
    base = write_model(folder / "base", matrices(COUNT))
    tuned = write_model(folder / "tuned", matrices(COUNT, change=1.0))
    return base, tuned


def command(models, *options):
    return ("extract", *models, "--workers", "1", *options)


def test_an_adapter_is_written_with_its_error_its_curve_and_its_picture(models, tmp_path):
    before = fingerprint(models[0].parent)
    out, plan = tmp_path / "out", tmp_path / "plan.json"
    done = invoke(
        *command(models, "--rank", "1", "-o", out, "--json", plan, "--plots", tmp_path / "pictures")
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert f"A LoRA of rank 1 on {COUNT} matrices keeps 100% of the squared update" in text
    assert f"{COUNT * 88:,} , float32" in text or f"{COUNT * 88:,}, float32" in text
    assert "error, own ranks" in text
    assert text.endswith(f"written: {out}")
    assert fingerprint(models[0].parent) == before
    manifest = json.loads((out / "intruscope_extract.json").read_text())
    assert manifest.pop("files")
    assert manifest == json.loads(plan.read_text())
    stored = load_file(out / "adapter_model.safetensors")
    for layer in range(COUNT):
        key = f"base_model.model.{name_of(layer)}.lora_"
        first, second = (load_file(m / "model.safetensors")[f"{name_of(layer)}.weight"] for m in models)
        torch.testing.assert_close(
            stored[f"{key}B.weight"] @ stored[f"{key}A.weight"], second - first, rtol=0, atol=1e-5
        )
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"error-curve.png", "error-curve.svg"}


def test_a_dry_run_writes_nothing_and_no_change_is_no_error(models, tmp_path):
    dry = invoke(*command(models, "--energy", "0.5", "--dry-run", "--json", "-"))
    assert dry.returncode == 0, dry.stderr
    assert [m["rank"] for m in json.loads(dry.stdout)["matrices"]] == [1] * COUNT
    same = invoke("extract", models[0], models[0], "--rank", "1", "--workers", "1", "-o", tmp_path / "out")
    assert same.returncode == 0, same.stderr
    assert "Nothing to extract" in same.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("-o", "OUT"), 2, "none was given, but exactly one of rank, energy, error and parameters"),
        (("--rank", "1", "--energy", "0.9", "-o", "OUT"), 2, "rank and energy were given"),
        (("--rank", "0", "-o", "OUT"), 2, "--rank must be a whole number of at least 1"),
        (("--rank", "-1", "-o", "OUT"), 2, "not '-1'"),
        (("--rank", "999", "-o", "OUT"), 2, "no selected matrix has a rank above 40"),
        (("--energy", "1.5", "-o", "OUT"), 2, "--energy must be a number above 0 and at most 1, not '1.5'"),
        (("--error", "1", "-o", "OUT"), 2, "--error must be a number of at least 0 and below 1, not '1'"),
        (
            ("--parameters", "3", "-o", "OUT"),
            2,
            "3 parameters are too few: one direction of the smallest matrix takes 88",
        ),
        (("--rank", "1"), 2, "no output folder given; pass -o FOLDER"),
        (("--rank", "1", "-o", "OUT", "--which", "nothing.*"), 2, "is not the name of a matrix"),
        (
            ("--rank", "1", "-o", "OUT", "--epsilon", "2"),
            2,
            "--epsilon must be a number above 0 and at most 1",
        ),
        (("--rank", "1", "-o", "OUT", "--json", "OUT/plan.json"), 7, ""),
        (("--rank", "1", "-o", "BASE/out"), 7, "lies in the input"),
        (("--rank", "1", "-o", "FULL"), 7, "the output folder is not empty"),
        (("--rank", "1", "-o", "NONE/out"), 7, "does not exist"),
        (("--rank", "1", "-o", "OUT", "--plots", "BASE/p"), 7, "lies in the input"),
    ],
    ids=str,
)
def test_refusals(models, tmp_path, options, code, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    places = {
        "OUT": tmp_path / "out",
        "BASE": models[0],
        "FULL": tmp_path / "full",
        "NONE": tmp_path / "none",
    }

    def placed(text):
        first, slash, rest = text.partition("/")
        return f"{places[first]}{slash}{rest}" if first in places else text

    before = fingerprint(models[0].parent)
    done = invoke("extract", *models, *map(placed, options))
    assert_message(done, code, says)
    assert fingerprint(models[0].parent) == before
    assert not (tmp_path / "out").exists()


def test_models_of_other_shapes_are_refused(models, tmp_path):
    other = write_model(tmp_path / "other", matrices(COUNT, shape=(40, 40)))
    done = invoke("extract", models[0], other, "--rank", "1", "-o", tmp_path / "out")
    assert_message(done, 4, "the tensor has shape [40, 40], but [48, 40] in the base")
    assert not (tmp_path / "out").exists()


def test_killed_and_resumed_is_the_same_as_never_killed(commands, models, tmp_path):
    whole = invoke(*command(models, "--energy", "0.9", "-o", tmp_path / "whole", "-q"))
    assert whole.returncode == 0, whole.stderr
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    arguments = command(models, "--energy", "0.9", "-o", out, "-q", "--work", work)

    def finished():
        return sum(p.read_bytes().count(b"\n") for p in work.glob("*/records.jsonl"))

    for at_least in (3, COUNT + 3):  # in the first pass, and in the second
        verb, *options = arguments
        running = commands.start(*options, verb=verb)
        ((pid, _),) = running
        eventually(lambda pid=pid, n=at_least: finished() >= n or not alive(pid), seconds=300)
        commands.stop(running)
        assert not any(out.glob("*"))
        time.sleep(0.2)
    before = finished()
    assert before >= 3
    again = invoke(*arguments)
    assert again.returncode == 0, again.stderr
    assert finished() == 2 * COUNT
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "intruscope_extract.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_leaves_nothing_behind(models, tmp_path):
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    work = tmp_path / "work"
    script = """
    folder=$1; shift
    mount -t tmpfs -o size=64k tmpfs "$folder"
    "$@"; code=$?
    ls -A "$folder"
    exit $code
    """
    (tmp_path / "small").mkdir()
    arguments = command(models, "--rank", "1", "-o", tmp_path / "small" / "out", "-q", "--work", work)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path / "small", *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 6, done.stderr
    assert "MiB are free there; free some space" in done.stderr
    assert done.stdout == ""
