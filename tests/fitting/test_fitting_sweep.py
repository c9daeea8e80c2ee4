"""Fits in a sweep: the best fix is named, replay is compared, a run resumes, and nothing leaks."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))
from sweep_cases import SETTINGS, world

from intruscope.engine.journal import Journal
from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.fitting.fit import Fit
from intruscope.fitting.repair import fitted_repair
from intruscope.fitting.settings import FitSettings
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import load_task
from intruscope.report.sweep_page import sweep_data
from intruscope.report.sweep_plots import write_sweep_plots
from intruscope.report.sweep_tables import sweep_summary
from intruscope.sweep.assemble import Fitted, assemble
from intruscope.sweep.measure import sweep
from intruscope.sweep.records import DataSource, SweepCell, SweepReport, SweepSettings
from intruscope.sweep.run import run_grid
from intruscope.sweep.settings import MeasureOptions

SHORT = FitSettings(fit_steps=4, fit_tokens=64)
SOURCE = DataSource(name="fit.txt", sha256="2" * 64, num_items=9, protocol="loss")


def removed(control, strength):
    return (0.6 if control == "uniform" else 0.4) * (1.0 - strength)


def cost(control, strength):
    return 0.1 * (1.0 - strength) ** 2


def report_with(fits, *, price=1.0):
    """A simulated sweep with fits: (fix, weight) to the share of the forgetting it removes, and its cost."""
    measured = world(removed, lambda *cell: price * cost(*cell), metric="loss")
    cells, by_key, made = list(measured.cells), dict(measured.by_key), {}
    draw = np.random.default_rng(5)
    harm = np.array(measured.tuned.text_nats) - np.array(measured.base_text.text_nats)
    for (fix, weight), (share, worse) in fits.items():
        cell = SweepCell(
            control=fix, which=None, strength=None, num_matrices=3, change_norm=weight, weight=weight
        )
        noise = 0.02 * 50.0 * draw.standard_normal(len(harm))
        task = tuple(np.array(measured.tuned.task_nats) + worse * 50.0)
        cells.append(cell)
        by_key[cell.key] = replace(
            measured.tuned,
            text_nats=tuple(np.array(measured.tuned.text_nats) - share * harm + noise),
            task_scores=task,
            task_nats=task,
        )
        made[cell.key] = Fit(
            fix=fix, weight=weight, numbers={}, edits=(), num_trained=7, looks=(), stopped_at=3, seconds=41.0
        )
    settings = replace(
        SETTINGS, controls=("intruders", "matched_change", "matched_result", "uniform", "fitted", "replay")
    )
    return assemble(
        replace(measured, cells=tuple(cells), by_key=by_key, fits=made),
        settings,
        base="base",
        tuned="tuned",
        text=replace(SOURCE, num_items=400),
        task=replace(SOURCE, num_items=600),
        num_intruders=3,
        num_matrices=12,
        models=("base", "tuned"),
        environment={},
        fitted=Fitted(text=SOURCE, task=SOURCE, settings=SHORT, directions=()),
    )


CASES = {
    "replay": (
        {("fitted", 0.3): (0.4, 0.005), ("fitted", 3.0): (0.9, 0.05), ("replay", 1.0): (0.6, -0.01)},
        ("replay", 1.0, "fitted"),
        "Replay beats every edit, the best of which is: one fitted factor per direction.",
        "intruscope repair base tuned -o tuned-replay --replay --weight 1 --task fit.txt --text fit.txt",
    ),
    "fitted": (
        {("fitted", 0.3): (0.5, 0.005), ("replay", 1.0): (0.3, 0.0)},
        ("fitted", 0.3, "fitted"),
        "forgets more than the best edit: one fitted factor per direction.",
        "intruscope repair base tuned -o tuned-fitted --fit --weight 0.3 --task fit.txt --text fit.txt",
    ),
    "alone": (
        {("replay", 1.0): (0.6, -0.01)},
        ("replay", 1.0, None),
        "No edit lowers forgetting at that cost.",
        "intruscope repair base tuned -o tuned-replay --replay --weight 1 --task fit.txt --text fit.txt",
    ),
    "neither": (
        {("fitted", 0.3): (0.9, 0.05), ("replay", 1.0): (0.9, 0.05)},
        ("uniform", None, "uniform"),
        "needs no fit",
        "intruscope repair base tuned -o tuned-uniform --strength 0.7 --control uniform",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_best_fix_is_the_planted_one(name):
    fits, (fix, weight, edit), said, command = CASES[name]
    report = report_with(fits, price=10.0 if name == "alone" else 1.0)
    best = report.fitting.best
    assert (best.fix, best.weight, best.best_edit) == (fix, weight, edit)
    assert said in best.sentence
    assert best.command == command
    assert best.report.data == "evaluation half"
    if name == "replay":
        assert best.seconds == 41.0
        assert "takes 41 seconds to fit" in best.sentence
        assert best.replay_gain.low > 0.0
        # 0.2 of the forgetting of 0.2 nats per token
        assert best.replay_gain.estimate == pytest.approx(0.04, abs=0.01)


def test_a_report_with_fits_is_written_and_read_again(tmp_path):
    report = report_with(CASES["replay"][0])
    report.save(tmp_path / "sweep.json")
    assert SweepReport.load(tmp_path / "sweep.json") == report
    cells = report.to_json()["cells"]
    assert all(cell["fix"] == cell["control"] for cell in cells)
    assert {(c["fix"], c["weight"], c["strength"]) for c in cells if c["weight"]} == {
        ("fitted", 0.3, None), ("fitted", 3.0, None), ("replay", 1.0, None),
    }  # fmt: skip
    assert {row[3] for row in report.rows()} == {None, 0.3, 1.0, 3.0}
    assert sweep_data(report)["fitting"]["sentence"] == report.fitting.best.sentence
    assert sweep_summary(report)
    assert "takes 41 seconds to fit" in report._repr_html_()
    write_sweep_plots(report, tmp_path / "plots")


def run(folder, **options):
    settings = SweepSettings(
        controls=("intruders", "fitted", "replay"), strengths=(0.5,), weights=(1.0,), num_resamples=200
    )
    return sweep(
        str(folder / "base"),
        str(folder / "adapter"),
        task=load_task(folder / "task.tsv"),
        text=folder / "text.txt",
        settings=settings,
        measuring=MeasureOptions(device="cpu"),
        options=RunOptions(workers=0, work_dir=options.pop("work", None)),
        **{"fitting": SHORT} | options,
    )


def test_a_sweep_with_fits_resumes_and_fits_again_only_with_other_settings(masked, tmp_path, monkeypatch):
    work = tmp_path / "work"
    events = []
    first = run(masked, work=work, on_progress=events.append)
    stages = [event.stage for event in events]
    steps = [event.done for event in events if event.stage == "fitting"]
    assert steps == sorted(steps)
    assert (steps[-1], events[-1].stage) == (8, "measuring")
    assert stages.index("fitting") < stages.index("measuring")
    assert [(each.fix, each.num_trained) for each in first.fitting.fits] == [("fitted", 24), ("replay", 1664)]
    assert (first.text.num_items, first.task.num_items) == (40, 40)
    assert first.fitting.directions[0].weight == 1.0

    def fail(*_, **__):
        raise AssertionError("fitted again")

    with monkeypatch.context() as patch:
        patch.setattr("intruscope.fitting.live.fit", fail)
        assert run(masked, work=work) == first
        with pytest.raises(AssertionError, match="fitted again"):
            run(masked, work=work, fitting=replace(SHORT, fit_steps=5))


def test_a_fit_is_journaled_before_anything_is_measured(tmp_path):
    class Stopped:
        digest, num_steps = "d", 1

        def fit(self, fix, weight, *, on_progress):
            numbers = {"part": (torch.ones(2),)}
            return Fit(
                fix=fix, weight=weight, numbers=numbers, edits=(), num_trained=2, looks=(), stopped_at=0,
                seconds=1.0,
            )  # fmt: skip

        def restored(self, fix, weight, record):
            raise KeyError(fix)

    class Nothing:
        matrices = ()

    settings = SweepSettings(controls=("intruders", "fitted"), weights=(0.5,))
    for error in (AttributeError, KeyError):  # measuring stops the first run; the second finds the fit
        with Journal(tmp_path / "journal", {}) as journal, pytest.raises(error):
            run_grid(Nothing(), None, settings, journal=journal, fitter=Stopped())
        assert list(journal.records) == ["fit/fitted/0.5/d"]


def test_a_leak_stops_a_sweep_before_any_model_is_loaded(masked, monkeypatch):
    monkeypatch.setattr("intruscope.sweep.measure.open_pair", None)
    with pytest.raises(UsageError, match="--fit-task"):
        run(masked, fit_task=load_task(masked / "task.tsv"))
    with pytest.raises(UsageError, match="--fit-text"):
        run(masked, fit_text=masked / "text.txt")


@pytest.mark.parametrize(("fix", "given"), [("fitted", True), ("replay", True), ("fitted_matrix", False)])
def test_a_fitted_repair_is_an_adapter_of_the_same_rank_that_peft_loads(masked, tmp_path, fix, given):
    from safetensors.torch import load_file

    text = masked / "text.txt" if given else None
    notices = []
    plan = fitted_repair(
        str(masked / "base"),
        str(masked / "adapter"),
        task=load_task(masked / "task.tsv"),
        text=text,
        fix=fix,
        weight=1.0,
        fitting=replace(SHORT, fit_steps=12),
        device="cpu",
        options=RunOptions(workers=0),
        out=tmp_path / "out",
        on_notice=notices.append,
    )
    plan.apply(tmp_path / "out")
    assert plan.edits
    assert (len(notices), plan.stored_rank) == (0 if given else 1, 2)
    assert not [finding for finding in plan.findings if finding.code == "rank-cut"]
    before, after = (
        load_file(f / "adapter_model.safetensors") for f in (masked / "adapter", tmp_path / "out")
    )
    assert {key: t.shape for key, t in after.items()} == {key: t.shape for key, t in before.items()}
    # The written adapter is the model that was fitted: every matrix, through PEFT.
    fitted, written = (
        load_pair(masked / "base", f, device="cpu") for f in (masked / "adapter", tmp_path / "out")
    )
    for edit in plan.edits:
        wanted = edit.applied(fitted.base_matrix(edit.name), fitted.tuned_matrix(edit.name))
        torch.testing.assert_close(written.tuned_matrix(edit.name).double(), wanted, rtol=0.0, atol=1e-5)
        assert (wanted - fitted.tuned_matrix(edit.name)).abs().max() > 1e-3
    assert plan.fit.title in (tmp_path / "out" / "README.md").read_text()
