"""Whole profiles over processes that only pretend to train, and what is made of them."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from cli_support import fingerprint
from profiling_models import write_bert

from intruscope.errors import IncompleteResult, MalformedInput, ResourceExhausted, UsageError
from intruscope.profiling.profile import profile
from intruscope.profiling.records import ProfileCell, ProfileSettings
from intruscope.progress import ignore_progress
from intruscope.report.profile import profile_json, profile_summary, write_profile_plots
from intruscope.weights.output import json_text
from processes import alive, children
from reported import stages_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("base") / "bert")


def profiled(base, worker, on_progress=ignore_progress, **options):
    usual = {
        "methods": ("lora",), "ranks": (8,), "last_layers": (1,), "batches": (2,), "lengths": (4,),
        "seconds": 60.0,
    }  # fmt: skip
    return profile(
        str(base),
        settings=ProfileSettings(**(usual | options)),
        function=f"profiling_workers:{worker}",
        on_progress=on_progress,
    )


@pytest.fixture(scope="module")
def plain(base):
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    try:
        events = []
        report = profiled(base, "answer", lengths=(4, 6), on_progress=events.append)
        assert stages_of(events) == {"starting": "settings", "measuring": "seconds"}
        return report
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def by_name(report):
    return {result.candidate.name: result for result in report.results}


def text_of(report):
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    console = Console(file=stream, width=110)
    for part in profile_summary(report):
        console.print(part)
    return stream.getvalue()


def test_what_the_processes_say_becomes_the_figures(plain):
    found = by_name(plain)
    assert list(found) == ["full", "full-again", "last-1", "lora-r8-all-linear"]
    assert plain.stopped == "precise" and plain.num_rounds == 10 and plain.reference == "full"
    for name, factor in (("full-again", 1.0), ("last-1", 0.5), ("lora-r8-all-linear", 0.9)):
        result = found[name]
        assert (result.failure, result.num_trained, result.num_matrices) == (None, 7, 3)
        assert [(cell.batch, cell.length) for cell in result.cells] == [(2, 4), (2, 6)]
        for cell in result.cells:
            assert cell.num_rounds == len(cell.rounds) == 10
            assert cell.ratios["step"].estimate == pytest.approx(factor, abs=0.003)
            assert cell.seconds["forward"].estimate == pytest.approx(0.5 * factor, rel=0.003)
            assert cell.seconds["optimizer"].estimate == pytest.approx(0.2 * factor, rel=0.003)
            assert cell.tokens_per_second.estimate == pytest.approx(2 * cell.length / factor, rel=0.003)
            assert cell.memory.resident_bytes == int(100 * 2**20 * factor)
            assert cell.memory.tensor_bytes == int(80 * 2**20 * factor) and cell.resident_ratio == factor
            assert cell.memory_ratio == factor
    verdicts = [found[name].cells[0].verdict for name in found]
    assert verdicts == [None, None, "faster", "faster"]
    for recommended in plain.recommendations:
        assert (recommended.outcome, recommended.setting) == ("faster", "last-1")
        assert recommended.sentence.startswith(
            "Training the last block alone is faster here: its step takes 0.50 (0.50 to 0.50) of the time"
        )


def test_the_json_is_whole_and_plain(plain):
    parsed = json.loads(json_text(profile_json(plain)), parse_constant=pytest.fail)
    assert parsed["schema"] == "intruscope.profile/1"
    assert parsed["head"] == "masked" and parsed["stopped"] == "precise"
    assert parsed["asked"]["lengths"] == [4, 6] and parsed["asked"]["device"] == "cpu"
    assert {"torch", "transformers", "peft", "threads", "cores", "avx512", "load_average"} <= set(
        parsed["environment"]
    )
    assert parsed["environment"]["threads"] >= 1
    lora = parsed["settings"][3]
    assert lora["name"] == "lora-r8-all-linear" and lora["status"] == "done" and lora["options"]["rank"] == 8
    shape = lora["shapes"][1]
    assert set(shape["seconds"]) == set(shape["ratios"]) == {"forward", "backward", "optimizer", "step"}
    assert (
        shape["ratios"]["step"]["low"]
        <= shape["ratios"]["step"]["estimate"]
        <= shape["ratios"]["step"]["high"]
    )
    assert shape["ratios"]["step"]["level"] == parsed["level"] == pytest.approx(1 - 0.05 / 3)
    assert shape["resident_bytes"] == 90 * 2**20 == shape["memory"]["peak_bytes"] - 100
    assert len(shape["rounds"]) == 10 and all(len(each) == 3 for each in shape["rounds"])
    assert "random" in parsed["tokens"] and "activations" in parsed["memory"]
    assert [each["outcome"] for each in parsed["recommendations"]] == ["faster", "faster"]


def test_the_table_says_what_people_ask(plain):
    lines = text_of(plain).splitlines()
    said = " ".join(" ".join(lines).split())
    assert "2 x 4 tokens" in said and "2 x 6 tokens" in said
    assert "LoRA r=8, all linear" in said and "0.90 (0.90 to 0.90)" in said
    assert "random tokens" in said and "says nothing about how much the model learns" in said
    assert max(map(len, lines)) <= 110
    assert re.search(r"LoRA r=8, all linear 0\.90 \(0\.90 to 0\.90\) 450 270 180 72 0\.90 90 9\b", said)


def test_the_picture_shows_every_setting_at_every_shape(plain, tmp_path):
    assert write_profile_plots(plain, tmp_path / "plots") == ("profile.png", "profile.svg")
    drawn = (tmp_path / "plots" / "profile.svg").read_text()
    for label in ("last block", "LoRA r=8, all linear", "full again", "forward", "optimiser", "GiB", "MiB"):
        assert (f">{label}<" in drawn) == (label != "GiB"), label
    assert drawn.count(">LoRA r=8, all linear<") == 2


def test_a_setting_that_dies_is_reported_and_others_go_on(base):
    report = profiled(base, "dies_warming", ranks=(4, 2, 8))
    found = by_name(report)
    assert "SIGKILL, perhaps because memory ran out" in found["lora-r4-all-linear"].failure
    assert "2 x 4 tokens" in found["lora-r4-all-linear"].failure
    assert found["lora-r2-all-linear"].failure.startswith("no memory (12345 bytes more were asked for)")
    assert found["lora-r4-all-linear"].cells == found["lora-r2-all-linear"].cells == ()
    assert found["lora-r8-all-linear"].cells[0].verdict == "faster"
    assert report.recommendations[0].setting == "last-1"
    said = " ".join(text_of(report).split())
    assert "failed LoRA r=4, all linear: its worker ended with SIGKILL" in said and "12345 bytes" in said
    statuses = {s["name"]: s["status"] for s in profile_json(report)["settings"]}
    assert statuses["lora-r4-all-linear"] == "failed" and statuses["full"] == "done"


def test_one_that_dies_on_the_way_keeps_what_it_had(base):
    report = profiled(base, "dies_measuring")
    lora = by_name(report)["lora-r8-all-linear"]
    assert "exit code 3" in lora.failure and lora.cells[0].num_rounds == 2
    assert lora.cells[0].verdict == "undecided"
    assert by_name(report)["last-1"].cells[0].num_rounds == report.num_rounds == 10


def test_without_full_others_are_compared_and_nothing_is_recommended(base):
    report = profiled(base, "full_dies")
    assert report.reference == "last-1"
    assert by_name(report)["lora-r8-all-linear"].cells[0].ratios["step"].estimate == pytest.approx(
        1.8, abs=0.01
    )
    (found,) = report.recommendations
    assert (found.outcome, found.setting) == ("no-full", None)
    assert "99 GiB" in found.reason and "could not be measured" in found.sentence
    assert "full fine-tuning failed" in by_name(report)["full-again"].failure


def test_where_nothing_fits_it_says_the_figure(base):
    before = set(children(os.getpid()))
    with pytest.raises(ResourceExhausted, match=r"99 GiB more.*--batch"):
        raise_message(profiled, base, "all_die")
    assert set(children(os.getpid())) <= before


def raise_message(function, *arguments, **options):
    """With the remedy in what ``match`` sees."""
    try:
        function(*arguments, **options)
    except (IncompleteResult, UsageError, ResourceExhausted) as error:
        raise type(error)(str(error), remedy="") from None


def test_a_machine_that_differs_from_itself_is_told(base):
    report = profiled(base, "unequal")
    (found,) = report.recommendations
    assert (
        found.outcome == "noisy"
        and found.setting is None
        and found.null.estimate == pytest.approx(1.1, abs=0.01)
    )


def test_too_little_time_says_what_it_would_take(base):
    with pytest.raises(
        UsageError, match=r"takes about 4\.8e\+06 s.*--seconds 480000\d\d or more, enough for the 10"
    ):
        raise_message(profiled, base, "slow")


def test_one_that_never_answers_is_not_waited_for(base):
    before = set(children(os.getpid()))
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"1 of 4 settings were ready"):
        raise_message(profiled, base, "sleeps", seconds=5.0)
    assert time.monotonic() - began < 30
    assert not [child for child in set(children(os.getpid())) - before if alive(child)]


def test_memory_that_is_not_there_is_not_asked_for(base, monkeypatch):
    from intruscope.profiling import profile as module

    asked = []

    def free():
        asked.append(1)
        return 1 << 40 if len(asked) <= 3 else 1 << 20

    monkeypatch.setattr(module, "free_memory", free)
    report = profiled(base, "answer")
    failure = by_name(report)["lora-r8-all-linear"].failure
    assert "not started: about 0.4 GiB are needed, 0.0 GiB are free" in failure
    assert by_name(report)["last-1"].failure is None


def test_a_base_that_cannot_be_read_is_an_error_of_its_own(base, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(MalformedInput):
        profiled(broken, "answer")
    before = fingerprint(base)
    profiled(base, "answer")
    assert fingerprint(base) == before


def test_only_shapes_of_the_settings_are_measured(plain):
    cells = {ProfileCell(r.candidate.name, (c.batch, c.length)) for r in plain.results for c in r.cells}
    assert len(cells) == 8
