"""What a sweep reports. Frozen records; the report package writes them as ``intruscope.sweep/1``.

A figure that does not exist (a share of a forgetting that is not there) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from intruscope.forgetting.settings import ForgetSettings
from intruscope.options import documented, option, shared
from intruscope.repair.interventions import KINDS
from intruscope.spectra.records import ScanSettings

if TYPE_CHECKING:
    from intruscope.forgetting.intervals import Interval

SCHEMA = "intruscope.sweep/1"
STRENGTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The strengths of the paper's table 3 (arXiv 2410.21228v3)."""
MATCHED = ("matched_change", "matched_result")
"""Shrinks of the whole update that are as large as the edit: what the intruders must beat to be special."""

Metric = Literal["accuracy", "loss"]
Outcome = Literal["recommended", "nothing-to-edit", "no-forgetting", "no-gain", "not-confirmed"]
Specialness = Literal["special", "not-special", "worse"]


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
        about="Strengths to try: the fraction of an intruder's singular value that is kept. 1 is the tuned "
        "model itself and needs no cell.",
        minimum=0,
        comma=True,
        metavar="X,X,...",
    )
    controls: tuple[str, ...] = option(
        KINDS,
        help="Interventions to compare, separated by commas, or 'all'. 'intruders' is the repair itself; "
        "docs/controls.md describes the others.",
        about="Kinds of :func:`intruscope.repair.interventions.intervene`, the repair itself among them.",
        comma=True,
        choices=KINDS,
        all=KINDS,
        metavar="NAME,...",
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
    """One model measured, item by item, so that two of them can be compared pair by pair.

    Attributes:
        text_nats: Loss of each sequence of the text, summed over its tokens.
        text_tokens: Tokens of each sequence that were scored.
        task_scores: Of each example: 1 or 0 for right or wrong, or its summed loss in nats.
        task_weights: What a score is a sum over: 1, or the example's scored tokens.
        task_nats: Loss of each example's right answer; the score itself where that is a loss.
        num_cut: Examples that were too long and were cut.
    """

    text_nats: tuple[float, ...]
    text_tokens: tuple[float, ...]
    task_scores: tuple[float, ...]
    task_weights: tuple[float, ...]
    task_nats: tuple[float, ...]
    num_cut: int = 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the grid.

    Attributes:
        control: A kind of intervention.
        which: Intruders that it goes by; None for what does not depend on them.
        strength: Retained fraction.
        num_matrices: Matrices that it changes.
        change_norm: ‖W' − W_tuned‖_F over all of them.
    """

    control: str
    which: str | None
    strength: float
    num_matrices: int
    change_norm: float

    @property
    def key(self) -> str:
        """Unique within a sweep; names the measurement in the journal."""
        return cell_key(self.control, self.which, self.strength)


def cell_key(control: str, which: str | None, strength: float) -> str:
    """Name of a cell, from what it is."""
    return "/".join([control, *([which] if which else []), repr(float(strength))])


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """A cell's figures on all the data; every change is against the tuned model, paired.

    Attributes:
        cell: The cell.
        forgetting: Against the base, nats per token.
        forgetting_change: Nats per token; negative is less forgetting.
        forgetting_share: That change as a share of the tuned model's forgetting; None without forgetting.
        task: Score.
        task_change: Positive is better for accuracy, worse for loss.
        task_loss_change: Loss of the right answers, nats per example (per token where the score is a loss):
            finer than accuracy, which only sees what crosses a border.
        forgetting_difference: Forgetting of this cell less that of the intruder edit of the same strength
            (and choice of intruders); positive where the intruder edit forgets less. None for that edit.
        task_difference: The same of the task's score.
    """

    cell: Cell
    forgetting: Interval
    forgetting_change: Interval
    forgetting_share: Interval | None
    task: Interval
    task_change: Interval
    task_loss_change: Interval
    forgetting_difference: Interval | None
    task_difference: Interval | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The strength that a rule takes on one half of the data, and what the other half says of it.

    Attributes:
        control: Whose strengths it chose among.
        which: As in the cell.
        strength: None where no strength lowers forgetting at a cost within the settings.
        report: Figures on the half that had no part in the choice; None without a strength.
    """

    control: str
    which: str | None
    strength: float | None
    report: CellReport | None


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the sweep advises, all of it from the half that had no part in the choice.

    Attributes:
        which: The intruders that it is about.
        outcome: ``recommended``, or why not.
        strength: That was chosen, also where the other half did not confirm it.
        report: Its figures.
        matched: Figures of the matched shrinks at that strength.
        intruders: ``special`` where the edit forgets less than every matched shrink and the task is none the
            worse, by interval; ``worse`` where a matched shrink does better; else ``not-special``.
        sentence: All of this in words.
    """

    which: str
    outcome: Outcome
    strength: float | None
    report: CellReport | None
    matched: tuple[CellReport, ...]
    intruders: Specialness | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text or a task: what it was, so that a figure can be made again.

    Attributes:
        name: As it was given.
        sha256: Of its contents.
        num_items: Sequences, or examples.
        protocol: Of the losses, or the metric.
        num_cut: Examples that were longer than the model takes, or than was asked for, and were cut.
    """

    name: str
    sha256: str
    num_items: int
    protocol: str
    num_cut: int = 0


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """A whole sweep.

    Attributes:
        base: Name of the model before.
        tuned: Name of the model after.
        settings: See there.
        metric: Of the task.
        text: What forgetting was measured on.
        task: What the task's score was measured on.
        num_intruders: Vectors with the verdict, over all matrices.
        num_matrices: Matrices that were surveyed.
        base_loss: Nats per token on the text.
        tuned_loss: Of the tuned model, strength 1.
        forgetting: Their paired difference.
        task_score: Of the tuned model.
        cells: The grid, in the order of the settings.
        choices: The same rule for every control, for comparison.
        recommendations: One for each choice of intruders.
        environment: Versions that a figure depends on.
    """

    base: str
    tuned: str
    settings: SweepSettings
    metric: Metric
    text: Source
    task: Source
    num_intruders: int
    num_matrices: int
    base_loss: float
    tuned_loss: float
    forgetting: Interval
    task_score: Interval
    cells: tuple[CellReport, ...]
    choices: tuple[Choice, ...]
    recommendations: tuple[Recommendation, ...]
    environment: dict[str, Any] = field(default_factory=dict)
