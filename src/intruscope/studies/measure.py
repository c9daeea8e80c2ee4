"""Everything that is measured of one trained run, by the package's own means."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.forgetting.intervals import paired_difference, wilson
from intruscope.forgetting.losses import SequenceLosses, choose_protocol, measure
from intruscope.forgetting.tasks import ClassificationTask
from intruscope.studies.weights import EPSILON, K

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from intruscope.adapters.live import LivePair
    from intruscope.engine.journal import Journal
    from intruscope.forgetting.scores import TaskScore
    from intruscope.forgetting.tasks import Task
    from intruscope.studies.grid import Run
    from intruscope.studies.inputs import Inputs
    from intruscope.studies.scale import Base

CONTROLS = ("intruders", "matched_change", "uniform", "neighbour_above", "neighbour_below")
STRENGTHS = (0.3, 0.5, 0.7, 0.9, 1.5)
NUM_FOLLOWED = 12
"""Intruders whose whole course is kept, of a run that pictures show."""
_BATCH_TOKENS = 4096
_LOSSES_OF_BASE: dict[tuple[Any, ...], SequenceLosses] = {}
"""Of the bases that this process has measured: they are the same for every run."""


def measured_run(run: Run, base: Base, inputs: Inputs, folder: Path, journal: Journal) -> dict[str, Any]:
    """Measure a run whose model lies in its folder, each part once.

    Args:
        run: Its settings.
        base: Of the scale.
        inputs: Of the base.
        folder: Of the run: ``train`` is finished.
        journal: Of what was measured so far.

    Returns:
        The columns of a row; see :mod:`intruscope.studies.claims_weights` and its neighbours.

    Raises:
        IntruscopeError: a file is damaged, or a loss is not finite.
    """
    from intruscope.studies.lives import life_figures
    from intruscope.studies.recipes import is_pictured
    from intruscope.studies.similarity import similarity_figures
    from intruscope.studies.weights import weight_figures

    is_shown = is_pictured(run, base)
    model = str(folder / "train" / "model")
    found: dict[str, Any] = {}

    def once(name: str, how: Any) -> None:
        if name not in journal.records:
            journal.append(name, how())
        found.update(journal.records[name])

    once("behaviour", lambda: behaviour_figures(run, base, inputs, model))
    once("weights", lambda: weight_figures(inputs.base, model, work=folder / "scans"))
    if is_shown:
        once("similarity", lambda: similarity_figures(inputs.base, model))
    if run.look_every:
        once("looks", lambda: life_figures(folder / "train", num_followed=NUM_FOLLOWED if is_shown else 0))
    if run.interventions:
        once("interventions", lambda: _interventions(run, base, inputs, model, folder))
    return found


def behaviour_figures(run: Run, base: Base, inputs: Inputs, model: str) -> dict[str, Any]:
    """Accuracy, held-out loss and forgetting, and whether the run learned anything.

    Forgetting is by fixed masks (masked models) or by plain cross-entropy (causal ones), in nats per token.

    Returns:
        ``accuracy`` (None for text), ``held_out_loss``, ``forgetting`` with its interval over sequences
        (``forgetting_low``, ``forgetting_high``), ``learned`` and, where it did not, ``reason``.
    """
    from intruscope.forgetting.models import load_pair
    from intruscope.forgetting.scores import score
    from intruscope.forgetting.texts import read_texts
    from intruscope.forgetting.windows import cut

    pair = load_pair(inputs.base, model)
    language = pair.language_model()
    sequences = cut(read_texts(inputs.text), language, max_sequences=base.text_sequences)
    protocol = choose_protocol(language.kind, "fast" if language.kind == "masked" else None)
    options: dict[str, Any] = {"protocol": protocol, "batch_tokens": _BATCH_TOKENS}
    asked = (inputs.base, inputs.text, base.text_sequences)
    if asked not in _LOSSES_OF_BASE:
        with pair.as_base():
            _LOSSES_OF_BASE[asked] = measure(language, sequences, **options)
    before = _LOSSES_OF_BASE[asked]
    with pair.as_tuned():
        after = measure(language, sequences, **options)
    forgetting = paired_difference(before.nats, after.nats, before.tokens)
    task = held_out(run, inputs)
    options = {"batch_tokens": _BATCH_TOKENS, "max_tokens": run.max_length}
    with pair.as_tuned():
        scored = score(pair, task, **options)
    loss = float(scored.nats_N.sum() / scored.units_N.sum())
    found = {
        "accuracy": None if scored.right_N is None else float(scored.right_N.mean()),
        "held_out_loss": loss,
        "forgetting": forgetting.estimate,
        "forgetting_low": forgetting.low,
        "forgetting_high": forgetting.high,
    }
    return {**found, **has_learned(pair, task, scored, lambda: score(pair, task, **options))}


def held_out(run: Run, inputs: Inputs) -> Task:
    """The side of a task that is not trained on."""
    return inputs.task(run.task, "eval")  # type: ignore[return-value]  # text is a task too on this side


def has_learned(
    pair: LivePair, task: Task, tuned: TaskScore, measure_again: Callable[[], TaskScore]
) -> dict[str, Any]:
    """A rule set before the runs: the interval lies above the commonest answer's share, or below the base.

    Args:
        pair: The base and the model.
        task: Held out.
        tuned: The model's score on it.
        measure_again: Scores the pair in the state that it is in then; of text, the base is scored.

    Returns:
        ``learned`` and, where it is False, ``reason``.
    """
    if tuned.right_N is not None:
        return _above_chance(tuned.right_N, task)
    with pair.as_base():
        before = measure_again()
    change = paired_difference(before.nats_N, tuned.nats_N, tuned.units_N)
    if change.high < 0.0:
        return {"learned": True, "reason": None}
    reason = f"held-out loss less the base's {change.estimate:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    return {"learned": False, "reason": reason}


def _above_chance(right_N: NDArray[np.bool_], task: Task) -> dict[str, Any]:
    common = commonest(task)
    interval = wilson(int(right_N.sum()), len(right_N))
    if interval.low > common:
        return {"learned": True, "reason": None}
    reason = f"held-out accuracy {interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"
    return {"learned": False, "reason": f"{reason}, the commonest answer has {common:.3f}"}


def commonest(task: Task) -> float:
    """The share of the commonest answer of a classification or multiple choice."""
    answers = (
        task.labels if isinstance(task, ClassificationTask) else [choice.answer for choice in task.choices]  # type: ignore[union-attr]
    )
    _, numbers = np.unique(np.asarray(answers), return_counts=True)
    return float(numbers.max() / numbers.sum())


def _interventions(run: Run, base: Base, inputs: Inputs, model: str, folder: Path) -> dict[str, Any]:
    """The paper's edit and its controls, at every strength."""
    from intruscope.engine.settings import RunOptions
    from intruscope.forgetting.models import load_pair
    from intruscope.forgetting.texts import read_texts
    from intruscope.repair.survey import survey
    from intruscope.spectra.records import ScanSettings
    from intruscope.sweep.figures import grid_reports
    from intruscope.sweep.measure import measure_pair
    from intruscope.sweep.records import SweepSettings
    from intruscope.sweep.settings import MeasureOptions
    from intruscope.sweep.statistics import samples

    options = RunOptions(workers=0, work_dir=folder / "survey")
    found = survey(inputs.base, model, settings=ScanSettings(k=K, epsilon=EPSILON), options=options)
    settings = SweepSettings(strengths=STRENGTHS, controls=CONTROLS, k=K, epsilon=EPSILON)
    measuring = MeasureOptions(
        max_sequences=base.sweep_sequences,
        max_examples=base.sweep_examples,
        max_tokens=run.max_length,
        batch_tokens=_BATCH_TOKENS,
    )
    measured = measure_pair(
        found,
        load_pair(inputs.base, model),
        task=held_out(run, inputs),
        text=read_texts(inputs.text),
        settings=settings,
        measuring=measuring,
        options=replace(options, work_dir=folder / "sweep"),
    )
    few = replace(settings, num_resamples=200)  # its intervals are over sequences; a study's are over runs
    everything, _, _ = samples(len(measured.tuned.text_nats), len(measured.tuned.task_scores), few)
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for report in grid_reports(measured, settings.which, everything):
        cell: dict[str, float | None] = {
            "forgetting_change": report.forgetting_change.estimate,
            "forgetting_share": report.forgetting_share.estimate if report.forgetting_share else None,
            "accuracy_change": report.task_change.estimate if measured.metric == "accuracy" else None,
            "loss_change": report.task_loss_change.estimate,
            "change_norm": report.cell.change_norm,
        }
        known = {name: value for name, value in cell.items() if value is not None}
        cells.setdefault(report.cell.control, {})[f"{report.cell.strength:g}"] = known
    return {"interventions": cells}
