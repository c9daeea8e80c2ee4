"""Every verb reports its progress with the same record, stage after stage, each to its end."""

import io
import sys
from dataclasses import replace

import pytest

import intruscope
from intruscope.cli.screen import progress_bars
from intruscope.sequence.records import ChainTask
from reported import stages_of

INLINE = intruscope.RunOptions(workers=0)


def scan(files, out, on_progress):
    intruscope.scan(files / "base", files / "adapter", options=INLINE, on_progress=on_progress)


def forget(files, out, on_progress):
    tasks = [intruscope.load_task(files / "task.tsv")]
    given = {"text": files / "text.txt", "tasks": tasks, "protocol": "exact"}
    intruscope.forget(files / "base", files / "adapter", **given, on_progress=on_progress)


def sweep(files, out, on_progress):
    settings = intruscope.SweepSettings(strengths=(0.5,), controls=("intruders",))
    task = intruscope.load_task(files / "task.tsv")
    given = {"text": files / "text.txt", "task": task, "settings": settings}
    options = replace(INLINE, work_dir=out)
    intruscope.sweep(files / "base", files / "adapter", **given, options=options, on_progress=on_progress)


def repair(files, out, on_progress):
    plan = intruscope.repair(files / "adapter", strength=0.5, options=INLINE, on_progress=on_progress)
    plan.apply(out, on_progress=on_progress)


def extract(files, out, on_progress):
    given = {"rank": 2, "options": INLINE, "on_progress": on_progress}
    intruscope.extract(files / "base", files / "adapter", **given).apply(out, on_progress=on_progress)


TUNING = intruscope.TuneSettings(method="lora", steps=2, batch=4, rate=1e-3, watch_every=0)


def tune(files, out, on_progress):
    data = intruscope.load_task(files / "task.tsv")
    given = {"out": out, "settings": TUNING, "data": data, "pictures": False}
    intruscope.tune(str(files / "base"), **given, on_progress=on_progress)


def chain(files, out, on_progress):
    data = intruscope.load_task(files / "task.tsv")
    tasks = [ChainTask(name=name, train=data, held_out=data) for name in ("one", "two")]
    settings = intruscope.ChainSettings(training=TUNING, workers=0)
    given = {"tasks": tasks, "settings": settings, "pictures": False}
    intruscope.chain(str(files / "base"), out=out, **given, on_progress=on_progress)


STAGE = {"training": "steps", "scoring": "tasks", "scanning": "matrices"}
CHAIN = [f"{start}: {what}" for n, name in ((1, "one"), (2, "two"))
         for start, what in ((f"{n}. {name}", "training"), (n, "scoring"), (n, "scanning"))]  # fmt: skip
EXPECTED = {
    scan: {"scanning": "matrices"},
    forget: {"loading": "models", "base": "tokens", "tuned": "tokens", "task.tsv, tuned": "examples"},
    sweep: {"surveying": "matrices", "measuring": "models"},
    repair: {"surveying": "matrices", "writing": "bytes"},
    extract: {"decomposing": "matrices", "checking": "matrices", "writing": "bytes"},
    tune: {"training": "steps"},
    chain: {"0: scoring": "tasks"} | {stage: STAGE[stage.partition(": ")[2]] for stage in CHAIN},
}  # fmt: skip


@pytest.mark.parametrize("verb", EXPECTED, ids=lambda verb: verb.__name__)
def test_every_verb_reports_its_stages_to_their_ends(files, tmp_path, verb):
    events = []
    verb(files, tmp_path / "out", events.append)
    assert {type(event) for event in events} == {intruscope.Progress}
    stages = {stage.removeprefix(f"{files}/"): unit for stage, unit in stages_of(events).items()}
    assert list(stages.items()) == list(EXPECTED[verb].items())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_per_stage_with_counts_in_their_units(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    scanning = intruscope.Progress(stage="scanning", done=3, total=1200, unit="matrices", item="layer.0")
    written = intruscope.Progress(stage="writing", done=1 << 20, total=2 << 20, unit="bytes")
    with progress_bars(quiet=False) as on_progress:
        on_progress(scanning)
        on_progress(written)
        on_progress(replace(scanning, done=1200, work_fraction=0.25))
    shown = sys.stderr.getvalue()
    assert "1,200/1,200 matrices" in shown and "layer.0" in shown
    assert "1.00 MiB of 2.00 MiB" in shown


@pytest.mark.parametrize(("stream", "quiet"), [(Terminal, True), (io.StringIO, False)])
def test_quiet_calls_and_logs_get_no_bars(monkeypatch, stream, quiet):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bars(quiet=quiet) as on_progress:
        on_progress(intruscope.Progress(stage="scanning", done=3, total=12, unit="matrices"))
    assert sys.stderr.getvalue() == ""
