"""What a sweep reports, as frozen records; :meth:`SweepReport.save` writes them as ``intruscope.sweep/1``.

A figure that does not exist (a share of the forgetting where nothing was forgotten) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from intruscope.fitting.records import DirectionTest  # noqa: TC001 - likewise
from intruscope.fitting.settings import WEIGHTS
from intruscope.fitting.table import FIXES
from intruscope.forgetting.intervals import Interval  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.forgetting.settings import ForgetSettings
from intruscope.options import documented, option, shared
from intruscope.records import notebook
from intruscope.records.report import Report
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.spectra.records import ScanSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.sweep/1"
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The strengths of the paper's table 3 (arXiv 2410.21228v3)."""

Metric = Literal["accuracy", "loss"]
AdviceOutcome = Literal["recommended", "nothing-to-edit", "no-forgetting", "no-gain", "not-confirmed"]
Specialness = Literal["special", "not-special", "worse"]
DataPart = Literal["all", "choosing half", "evaluation half"]
"""Which sequences and examples a figure is computed on."""


@documented
@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What is swept, and how its figures are computed.

    Attributes:
        confidence: Level of every interval.
    """

    strengths: tuple[float, ...] = option(
        STRENGTHS,
        help="Strengths to try, separated by commas: the fraction of an intruder's singular value that is "
        "kept. 0 removes it, 1 keeps it.",
        about="Strengths to try: the fraction of an intruder's singular value that is kept, or the gamma of "
        "guidance. 1 is the tuned model itself and needs no cell.",
        minimum=0,
        comma=True,
        metavar="X,X,...",
    )
    controls: tuple[str, ...] = option(
        tuple(INTERVENTIONS),
        help="Fixes to compare, separated by commas, or 'all'. 'intruders' is the repair itself; "
        "docs/controls.md describes the other interventions, docs/fixes.md those that are fitted to data "
        "(fitted, fitted_matrix, replay), and docs/guidance.md 'guidance', whose strength is gamma. The "
        "default leaves out these four.",
        about="Names in :data:`intruscope.fitting.table.FIXES`, the repair itself among them.",
        comma=True,
        choices=tuple(FIXES),
        all=tuple(FIXES),
        metavar="NAME,...",
    )
    weights: tuple[float, ...] = option(
        WEIGHTS,
        help="Weights of the loss on text beside the task's, for fixes that are fitted to data, separated by "
        "commas. A larger weight wins back more and costs the task more.",
        above=0,
        comma=True,
        metavar="X,X,...",
    )
    which: tuple[str, ...] = option(
        ("top",),
        help="Intruders to edit: top (one per matrix), all, or a selection as in repair. Each is swept "
        "separately.",
        metavar="SELECTION",
    )
    max_task_cost: float = option(
        0.01,
        flag="max-cost",
        help="Largest acceptable loss on the task: a fraction of accuracy, or nats per token.",
        minimum=0,
    )
    k: int = shared(ScanSettings, "k")
    epsilon: float = shared(ScanSettings, "epsilon")
    seed: int = shared(ScanSettings, "seed")
    num_resamples: int = shared(ForgetSettings, "num_resamples")
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model measured item by item, so that two models can be compared pair by pair.

    Attributes:
        text_nats: Loss of each sequence of the text, summed over its tokens.
        text_tokens: Number of scored tokens of each sequence.
        task_scores: For each example, 1 or 0 for right or wrong, or its summed loss in nats.
        task_weights: What each score is a sum over: 1, or the example's scored tokens.
        task_nats: Loss of each example's right answer; the score itself where that is a loss.
        num_cut: Number of examples that were too long and were truncated.
    """

    text_nats: tuple[float, ...]
    text_tokens: tuple[float, ...]
    task_scores: tuple[float, ...]
    task_weights: tuple[float, ...]
    task_nats: tuple[float, ...]
    num_cut: int = 0


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One cell of the grid: an intervention at a strength, or a fitted fix at a weight.

    Attributes:
        control: Name of the fix.
        which: The intruders it depends on; None where it does not depend on them.
        strength: Fraction that is kept, or the gamma of guidance; None for a fitted fix.
        num_matrices: Number of matrices that change.
        change_norm: ‖W' − W_tuned‖_F over all of them.
        weight: Of the loss on text, in the fit; None for an intervention.
    """

    control: str
    which: str | None
    strength: float | None
    num_matrices: int
    change_norm: float
    weight: float | None = None

    @property
    def key(self) -> str:
        """Unique within a sweep; the measurement's key in the journal."""
        if self.strength is None:
            return f"{self.control}/weight/{self.weight!r}"
        return cell_key(self.control, self.which, self.strength)

    @property
    def setting(self) -> float:
        """Its place in the series: the strength, or the weight of a fit."""
        found = self.weight if self.strength is None else self.strength
        assert found is not None
        return found


def cell_key(control: str, which: str | None, strength: float) -> str:
    """The key of an intervention's cell with these coordinates."""
    return "/".join([control, *([which] if which else []), repr(float(strength))])


@dataclass(frozen=True, kw_only=True)
class SweepCellReport:
    """The figures of a cell on one part of the data; every change is relative to the tuned model, paired.

    Attributes:
        cell: The cell.
        data: The part of the data that all figures here are computed on.
        forgetting: Relative to the base, in nats per token.
        forgetting_change: In nats per token; negative is less forgetting.
        forgetting_share: The same as a share of the tuned model's forgetting; None without forgetting.
        task: Score on the task.
        task_change: Positive is better for accuracy, worse for loss.
        task_loss_change: Loss of the right answers, nats per example (per token where the score is a loss).
            Finer than accuracy, which only sees answers that flip.
        forgetting_difference: Forgetting of this cell minus that of the intruder edit at the same strength
            (and selection); positive where the intruder edit forgets less. None for that edit itself.
        task_difference: The same for the task's score.
    """

    cell: SweepCell
    data: DataPart
    forgetting: Interval
    forgetting_change: Interval
    forgetting_share: Interval | None
    task: Interval
    task_change: Interval
    task_loss_change: Interval
    forgetting_difference: Interval | None
    task_difference: Interval | None


@dataclass(frozen=True, kw_only=True)
class ChosenStrength:
    """The strength or weight that the rule chose on one half of the data, with its figures on the other half.

    Attributes:
        control: The fix whose strengths or weights were compared.
        which: As in the cell.
        strength: None for a fitted fix, and where no strength lowers forgetting at an acceptable cost.
        report: Figures on the evaluation half; None without a choice.
        weight: The chosen weight of a fitted fix; None where there is none.
        chosen_by: Change of forgetting on the choosing half, in nats per token; None without a choice.
    """

    control: str
    which: str | None
    strength: float | None
    report: SweepCellReport | None
    weight: float | None = None
    chosen_by: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the sweep advises for one selection of intruders.

    The strength was chosen on one half of the data; all figures are of the other half.

    Attributes:
        which: The selection of intruders.
        outcome: ``recommended``, or the reason why no strength is.
        strength: The chosen strength, also where the evaluation half did not confirm it.
        report: Its figures.
        matched: Figures of the matched shrinks at that strength.
        intruders: ``special`` where the edit forgets less than every matched shrink and the task is no worse,
            by interval; ``worse`` where a matched shrink does better; otherwise ``not-special``.
        sentence: All of this in words.
        command: The shell command that writes the recommended model; None without a recommendation, or for
            models that have no name.
        shrink_command: The same for shrinking the whole update, where a mere shrink does better.
    """

    which: str
    outcome: AdviceOutcome
    strength: float | None
    report: SweepCellReport | None
    matched: tuple[SweepCellReport, ...]
    intruders: Specialness | None
    sentence: str
    command: str | None = None
    shrink_command: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataHalf:
    """One half of the data, and the tuned model on it.

    Attributes:
        data: Which half.
        num_sequences: Sequences of the text in it.
        num_examples: Examples of the task in it.
        forgetting: Tuned minus base, in nats per token.
        task_score: Score of the tuned model.
    """

    data: DataPart
    num_sequences: int
    num_examples: int
    forgetting: Interval
    task_score: Interval


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A text or a task, described so that a figure can be reproduced.

    Attributes:
        name: As given.
        sha256: Hash of its contents.
        num_items: Number of sequences, or of examples.
        protocol: How losses are computed, or the metric.
        num_cut: Number of examples truncated to the model's longest input, or to the requested limit.
    """

    name: str
    sha256: str
    num_items: int
    protocol: str
    num_cut: int = 0


@dataclass(frozen=True, kw_only=True)
class FitSummary:
    """One fit: what it took, and where it stopped.

    Attributes:
        fix: Name of the fix.
        weight: Of the loss on text.
        num_trained: How many numbers were trained.
        stopped_at: The step whose numbers were kept, by the choosing half; 0 where none helped.
        seconds: How long it took.
    """

    fix: str
    weight: float
    num_trained: int
    stopped_at: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BestFix:
    """The fix that wins back most at an acceptable cost, and how the others compare.

    Every fix is represented by what the rule chose on the choosing half, where the best of them is chosen
    too; all figures are of the evaluation half.

    Attributes:
        fix: Its name; None where no fix lowers forgetting at an acceptable cost.
        which: The selection of intruders, where it has one.
        strength: Of an intervention.
        weight: Of a fitted fix.
        seconds: How long the fit took; None for an intervention.
        report: Its figures.
        best_edit: The best fix that edits the weights as they are (everything but replay and guidance).
        replay_gain: Forgetting of that edit minus that of replay, in nats per token; positive where replay
            forgets less. None without both.
        sentence: All of this in words.
        command: The shell command that writes the model; None without a fix, or for models without a name.
    """

    fix: str | None
    which: str | None
    strength: float | None
    weight: float | None
    seconds: float | None
    report: SweepCellReport | None
    best_edit: str | None
    replay_gain: Interval | None
    sentence: str
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What the fitted fixes of a sweep were fitted on, and what they say.

    Attributes:
        text: Text to fit on; disjoint from what is measured.
        task: Examples to fit on; likewise.
        steps: Steps of each fit.
        tokens: Tokens of each kind in a step.
        general: ``loss`` or ``kl``.
        fits: Every fit, in the order of the grid.
        best: The best fix of all.
        directions: For each fit of one factor per direction: whether it turns intruders down more than
            other directions of the same size.
    """

    text: DataSource
    task: DataSource
    steps: int
    tokens: int
    general: str
    fits: tuple[FitSummary, ...]
    best: BestFix
    directions: tuple[DirectionTest, ...]


_FIGURES = (
    "forgetting",
    "forgetting_change",
    "forgetting_share",
    "task",
    "task_change",
    "task_loss_change",
    "forgetting_difference",
    "task_difference",
)
COLUMNS: dict[str, str] = {
    "control": "string",
    "which": "string",
    "strength": "float64",
    "weight": "float64",
    "num_matrices": "int64",
    "change_norm": "float64",
    **{f"{name}{end}": "float64" for name in _FIGURES for end in ("", "_low", "_high")},
}
"""Column names in order, with their Arrow types; the column with a figure's plain name is its estimate."""


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """A whole sweep. Figures are of all the data, except where a record says otherwise.

    Its table has one row per cell of the grid; the column with a figure's plain name is its estimate.

    Attributes:
        base: Name of the base model.
        tuned: Name of the tuned model.
        settings: What was swept, and how.
        metric: The metric of the task.
        text: What forgetting was measured on.
        task: What the task's score was measured on.
        num_intruders: Number of intruders over all matrices.
        num_matrices: Number of surveyed matrices.
        base_loss: Loss of the base on the text, in nats per token, on all the data.
        tuned_loss: The same for the tuned model.
        forgetting: Their paired difference, on all the data.
        task_score: Score of the tuned model, on all the data.
        halves: The half that chooses strengths, and the half that evaluates them.
        cells: The grid on all the data, in the order of the settings.
        choices: The same rule applied to every control, for comparison; figures of the evaluation half.
        recommendations: One for each selection of intruders; figures of the evaluation half.
        environment: Versions that a figure depends on.
        fitting: The fitted fixes; None where the sweep has none.
    """

    schema = SCHEMA
    columns = COLUMNS

    base: str
    tuned: str
    settings: SweepSettings
    metric: Metric
    text: DataSource
    task: DataSource
    num_intruders: int
    num_matrices: int
    base_loss: float
    tuned_loss: float
    forgetting: Interval
    task_score: Interval
    halves: tuple[DataHalf, DataHalf]
    cells: tuple[SweepCellReport, ...]
    choices: tuple[ChosenStrength, ...]
    recommendations: tuple[Recommendation, ...]
    environment: dict[str, Any] = field(default_factory=dict)
    fitting: Fitting | None = None

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per cell, in the order of :data:`COLUMNS`."""
        for each in self.cells:
            cell = each.cell
            figures: list[float | None] = []
            for name in _FIGURES:
                value: Interval | None = getattr(each, name)
                figures += [None] * 3 if value is None else [value.estimate, value.low, value.high]
            place = (cell.control, cell.which, cell.strength, cell.weight)
            yield (*place, cell.num_matrices, cell.change_norm, *figures)

    def notebook(self) -> Sequence[str]:
        """The advice, the tuned model's forgetting, and the grid."""
        forgetting = self.forgetting
        grid = [
            (
                each.cell.control,
                each.cell.which,
                each.cell.setting,
                _interval(each.forgetting_change),
                _interval(each.task_change),
            )
            for each in self.cells
        ]
        return [
            notebook.line(f"{self.base} → {self.tuned}", "top"),
            notebook.headline(
                f"{forgetting.estimate:+.3f}",
                f"nats per token of forgetting ({forgetting.low:+.3f} to {forgetting.high:+.3f}), "
                f"{self.num_intruders} intruders in {self.num_matrices} matrices",
            ),
            *[notebook.line(each.sentence, "warn") for each in self.recommendations],
            *([] if self.fitting is None else [notebook.line(self.fitting.best.sentence, "warn")]),
            notebook.table(
                "Against the tuned model, on all the data",
                ("edit or control", "which", "strength or weight", "forgetting, nats/token", self.metric),
                grid,
            ),
        ]

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        first = {name: laid_out.pop(name) for name in ("base", "tuned")}
        laid_out["cells"] = [_flat(cell) for cell in laid_out["cells"]]
        for each in (*laid_out["choices"], *laid_out["recommendations"]):
            each["report"] = None if each["report"] is None else _flat(each["report"])
        for each in laid_out["recommendations"]:
            each["matched"] = [_flat(cell) for cell in each["matched"]]
        if laid_out["fitting"] is not None:
            best = laid_out["fitting"]["best"]
            best["report"] = None if best["report"] is None else _flat(best["report"])
        return {**first, "unit": "nats/token", "settings": laid_out.pop("settings"), **laid_out}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        def nested(each: dict[str, Any]) -> dict[str, Any]:
            report = each["report"]
            return {**each, "report": None if report is None else _nested(report)}

        fitting = data.get("fitting")
        return {
            **{name: item for name, item in data.items() if name != "unit"},
            "fitting": None if fitting is None else {**fitting, "best": nested(fitting["best"])},
            "cells": [_nested(cell) for cell in data["cells"]],
            "choices": [nested(each) for each in data["choices"]],
            "recommendations": [
                {**nested(each), "matched": [_nested(cell) for cell in each["matched"]]}
                for each in data["recommendations"]
            ],
        }


def _flat(report: dict[str, Any]) -> dict[str, Any]:
    """A cell's place in the grid beside its figures."""
    cell = report["cell"]
    return {"fix": cell["control"], **cell, **{name: item for name, item in report.items() if name != "cell"}}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_flat`."""
    place = {each.name for each in fields(SweepCell)}
    flat = {name: item for name, item in flat.items() if name != "fix"}
    return {
        "cell": {name: item for name, item in flat.items() if name in place},
        **{name: item for name, item in flat.items() if name not in place},
    }


def _interval(found: Interval) -> str:
    return f"{found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
