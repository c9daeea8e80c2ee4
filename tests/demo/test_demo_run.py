"""Does the demonstration show what it says, in direction, and leave a folder that others can read?"""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from rich.console import Console

from intruscope.cli.demo import _seen
from intruscope.demo.folder import MANIFEST
from intruscope.demo.run import MODEL, run_demo
from intruscope.demo.screen import live_progress
from intruscope.demo.texts import digest, language_reference, library_texts
from intruscope.errors import OutputConflict, UsageError

NUM_STEPS = 40


def events_of(events, stage):
    return [event for event in events if event.stage == stage]


@pytest.fixture(scope="module")
def demo(inline_module, tmp_path_factory):
    """A demonstration in less time: fewer and smaller steps, at higher rates."""
    events = []
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intruscope.demo.run.BATCH", 2)
        patch.setattr("intruscope.demo.run.NUM_EVALUATION_WINDOWS", 32)
        patch.setattr("intruscope.demo.run.FULL_LEARNING_RATE", 1.2e-3)
        patch.setattr("intruscope.demo.run.LORA_LEARNING_RATE", 1.2e-2)
        result = run_demo(out, steps=NUM_STEPS, precision="float32", on_progress=events.append)
    return result, events


@pytest.mark.slow
def test_at_equal_task_loss_lora_makes_intruders_and_forgets_more(demo) -> None:
    result, _ = demo
    full, lora = result.runs
    assert full.losses.task < result.base.task - 0.2
    assert lora.losses.task < result.base.task - 0.2
    assert abs(full.losses.task - lora.losses.task) < 0.15
    assert lora.num_intruders >= full.num_intruders + 3
    assert full.num_vectors == lora.num_vectors == 280
    assert lora.forgetting > full.forgetting > 0
    for run in result.runs:
        assert run.forgetting == run.losses.source - result.base.source


@pytest.mark.slow
def test_the_base_is_the_shipped_model_byte_for_byte(demo) -> None:
    result, _ = demo
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (result.out / "base" / name).read_bytes() == (MODEL / name).read_bytes()


@pytest.mark.slow
def test_the_folder_is_whole_and_its_figures_are_the_results(demo) -> None:
    result, _ = demo
    manifest = json.loads((result.out / MANIFEST).read_text())["sha256"]
    for name, value in manifest.items():
        assert hashlib.sha256((result.out / name).read_bytes()).hexdigest() == value
    assert {"report.html", "figures.json", "scan-full.json", "scan-lora.json"} <= manifest.keys()
    assert {"full/model.safetensors", "lora/adapter_model.safetensors"} <= manifest.keys()
    assert not any(".partial" in path.name for path in result.out.parent.iterdir())
    figures = json.loads((result.out / "figures.json").read_text())
    assert figures["runs"][1]["num_intruders"] == result.runs[1].num_intruders
    scan = json.loads((result.out / "scan-lora.json").read_text())
    assert scan["totals"]["num_intruders"] == result.runs[1].num_intruders
    adapter = json.loads((result.out / "lora" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(result.out / "base")
    for name in manifest:
        assert b".partial" not in (result.out / name).read_bytes(), name


@pytest.mark.slow
def test_texts_are_named_by_hash_in_the_figures_and_on_the_page(demo) -> None:
    result, _ = demo
    train, test = language_reference(seed=0)
    expected = {
        "train": digest(train),
        "task": digest(test),
        "source": digest(library_texts(held_out=True)),
    }
    assert {text.role: text.sha256 for text in result.texts} == expected
    page = result.report_path.read_text()
    assert all(page.index(value) > page.index('id="coverage"') for value in expected.values())
    assert result.python in page


@pytest.mark.slow
def test_progress_is_reported_stage_by_stage_to_the_end(demo) -> None:
    _, events = demo
    last = {event.stage: event for event in events}
    assert all(event.done == event.total for event in last.values())
    for stage in ("full fine-tuning", "LoRA, rank 8"):
        assert [event.done for event in events_of(events, stage)] == list(range(NUM_STEPS + 1))
    assert list(last)[-1] == "scanning lora"


@pytest.mark.slow
def test_the_terminal_ends_with_figures_sentence_texts_and_the_place_of_the_report(demo) -> None:
    result, _ = demo
    console = Console(width=80, file=io.StringIO())
    for part in _seen(result, result.out):
        console.print(part)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for run in result.runs:
        (row,) = (line for line in shown.splitlines() if line.strip().startswith(f"{run.method} "))
        for figure in (f"{run.losses.task:.3f}", f"{run.forgetting:+.3f}", f"{run.num_intruders} of 280"):
            assert figure in row
    joined = shown.replace("\n", "")
    assert str(result.report_path) in joined
    assert all(text.sha256[:12] in shown for text in result.texts)
    assert f"made {result.runs[0].num_intruders} intruder" in joined.replace("  ", " ")


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_bars_move_on_a_terminal_and_a_log_gets_one_line_a_stage(demo, terminal) -> None:
    _, events = demo
    console = Console(width=100, file=io.StringIO(), force_terminal=terminal)
    with live_progress(console) as on_progress:
        for event in events:
            on_progress(event)
    shown = console.file.getvalue()
    assert "full fine-tuning" in shown and events_of(events, "LoRA, rank 8")[-1].item in shown
    if terminal:
        assert f"{NUM_STEPS}/{NUM_STEPS}" in shown
    else:
        assert len(shown.splitlines()) == len({event.stage for event in events})


@pytest.mark.slow
def test_a_published_adapter_scans_alone_to_the_same_verdicts(demo) -> None:
    from intruscope.engine.settings import RunOptions
    from intruscope.spectra.scan import scan

    result, _ = demo
    report = scan(
        str(result.out / "lora"), options=RunOptions(workers=0, work_dir=result.out.parent / "work")
    )
    counts = [side.num_intruders for matrix in report.matrices for side in matrix.sides]
    assert sum(counts) == result.runs[1].num_intruders


def test_nonsense_is_refused_before_anything_is_made(tmp_path) -> None:
    with pytest.raises(UsageError, match="0 steps"):
        run_demo(tmp_path / "out", steps=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputConflict):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_libraries_are_named_with_the_extra_that_brings_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="transformers and peft") as caught:
        run_demo(tmp_path / "out")
    assert "intruscope[lab]" in caught.value.remedy


def test_a_stop_in_the_middle_leaves_nothing(tmp_path) -> None:
    def stop(event) -> None:
        if event.stage == "measuring the base":
            assert list(tmp_path.glob(".out.*.partial/base/model.safetensors"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "out", steps=1, precision="float32", on_progress=stop)
    assert list(tmp_path.iterdir()) == []
