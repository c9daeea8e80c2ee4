"""The verb: real settings in their own processes, refusals in one line, signals that leave nothing behind."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "profiling"))
from cli_support import assert_message, eventually, fingerprint, invoke
from profiling_models import write_bert, write_gpt2

from processes import alive, children

SMALL = ["--method", "lora", "--rank", "2", "--batch", "2", "--length", "6", "--threads", "1"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {"bert": write_bert(folder / "bert"), "gpt2": write_gpt2(folder / "gpt2")}


@pytest.mark.slow
@pytest.mark.parametrize(("base", "head"), [("bert", "masked"), ("gpt2", "causal")])
def test_a_profile_is_measured_written_and_shown(bases, commands, tmp_path, base, head):
    before = fingerprint(bases[base])
    out, plots = tmp_path / "profile.json", tmp_path / "plots"
    arguments = [
        bases[base], *SMALL, "--seconds", "400", "--precision", "0.9", "--json", out, "--plots", plots,
    ]  # fmt: skip
    # Once with processes that begin with nothing, as for users.
    done = invoke("profile", *arguments) if base == "bert" else commands.run(*arguments, verb="profile")
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert (report["schema"], report["head"]) == ("intruscope.profile/1", head)
    assert [s["name"] for s in report["settings"]] == ["full", "full-again", "lora-r2-all-linear"]
    assert report["num_rounds"] >= 10 and report["environment"]["threads"] == 1
    full, again, lora = report["settings"]
    assert full["num_trained"] == again["num_trained"] > lora["num_trained"] > 0
    for setting in report["settings"]:
        (shape,) = setting["shapes"]
        memory, seconds = shape["memory"], shape["seconds"]
        assert all(seconds[phase]["low"] > 0 for phase in ("forward", "backward", "optimizer", "step"))
        assert memory["peak_bytes"] >= memory["loaded_bytes"] > memory["runtime_bytes"] > 0
        assert memory["tensor_bytes"] > 4 * report["num_parameters"]
    assert "LoRA r=2, all linear" in done.stdout
    assert report["recommendations"][0]["sentence"][:30] in done.stdout
    assert sorted(path.name for path in plots.iterdir()) == ["profile.png", "profile.svg"]
    assert fingerprint(bases[base]) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "lorra"], ["did you mean the method lora"]),
        (["--method", "construct"], ["cannot be trained"]),
        (["--last-layers", "4"], ["--last-layers 4", "from 1 to 3"]),
        (["--targets", "querry"], ["did you mean query"]),
        (["--length", "41"], ["--length 41", "model's 40 positions"]),
        (["--method", "full", "--rank", "4"], ["--rank has no effect on full fine-tuning alone"]),
        (["--seconds", "0"], ["--seconds must be a number above 0, not '0'"]),
        (["--seconds", "nan"], ["--seconds must be", "not 'nan'"]),
        (["--precision", "-1"], ["--precision must be a number above 0, not '-1'"]),
        (["--device", "abacus"], ["--device is abacus"]),
        (["--seconds", "0.2"], ["0 of 10 settings were ready", "use --seconds"]),
    ],
)
def test_bad_requests_are_one_line_with_what_to_do(bases, arguments, words):
    given = arguments if "--length" in arguments else [*arguments, "--length", "8"]
    assert_message(invoke("profile", bases["bert"], *given), 2, *words)


def test_an_output_inside_the_base_is_refused_before_any_work(bases):
    done = invoke("profile", bases["bert"], "--json", bases["bert"] / "p.json")
    assert_message(done, 7)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_in_time_and_leaves_nothing_running(bases, commands, tmp_path, number, code):
    out = tmp_path / "p.json"
    running = commands.start(bases["bert"], *SMALL, "--precision", "1e-6", "--json", out, verb="profile")
    ((pid, _),) = running
    eventually(lambda: len(children(pid)) == 3, seconds=120)
    settings = children(pid)
    time.sleep(1.0)
    os.kill(pid, number)
    eventually(lambda: not any(map(alive, settings)), seconds=5)
    done = commands.wait(running)
    assert done.codes == (code,) and done.stderr.count("\n") == 1
    assert not out.exists()
