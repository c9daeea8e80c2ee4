"""The grid, cell by cell: each measurement is journaled before the next one starts.

This module knows no model: whatever can measure an edit (a live pair, a simulation in a test) is a
:class:`Bench`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from intruscope.errors import UsageError, printable
from intruscope.fitting.table import FITS, GUIDANCE, find_fix
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.repair.interventions import INTERVENTIONS, change_norm, checked_strength, intervene
from intruscope.sweep.figures import Measured
from intruscope.sweep.records import Measurement, SweepCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from intruscope.engine.journal import Journal
    from intruscope.fitting.fit import Fit
    from intruscope.repair.edits import MatrixEdit
    from intruscope.repair.survey import Survey
    from intruscope.sweep.records import Metric, SweepSettings

_BASE, _TUNED = "base", "tuned"
_FIT = "fit/"


class Bench(Protocol):
    """Something that can measure a pair of models in any state of its weights."""

    @property
    def metric(self) -> Metric:
        """The metric of the task."""

    @property
    def protocol(self) -> str:
        """How losses on the text are computed, with a version."""

    def base_text(self) -> Measurement:
        """The base on the text; it has no task scores."""

    def edited(self, edits: Sequence[MatrixEdit]) -> Measurement:
        """The tuned model with these edits, on text and task."""

    def interpolated(self, fraction: float) -> Measurement:
        """The model with everything that the fine-tune changed moved towards the base."""

    def guided(self, gamma: float) -> Measurement:
        """Base and tuned model predicting together."""


class Fitter(Protocol):
    """Something that can fit a fix to data."""

    @property
    def digest(self) -> str:
        """Hash of the data and settings of the fits: what a kept fit must agree with."""

    @property
    def num_steps(self) -> int:
        """Steps of each fit."""

    def fit(self, fix: str, weight: float, *, on_progress: OnProgress) -> Fit:
        """Fit a fix at a weight of the loss on text."""

    def restored(self, fix: str, weight: float, record: dict[str, Any]) -> Fit:
        """The fit of a journal's record."""


def checked_settings(settings: SweepSettings) -> SweepSettings:
    """Return the settings if they are valid.

    Raises:
        UsageError: a strength that is negative, not finite or given twice; an unknown control or one given
            twice; no intruder edit among the controls; or a negative cost.
    """
    for strength in settings.strengths:
        checked_strength(strength)
    for name, values in (
        ("strengths", settings.strengths),
        ("controls", settings.controls),
        ("which", settings.which),
        ("weights", settings.weights),
    ):
        if not values or len(set(values)) != len(values):
            raise UsageError(
                f"{name} has a value twice: {_listed(values)}" if values else f"{name} is empty",
                remedy=f"give {name} at least one value, and each value once",
            )
    for control in settings.controls:
        find_fix(control)
    for weight in settings.weights:
        if not (math.isfinite(weight) and weight > 0.0):
            raise UsageError(
                f"the weight {weight:g} is not a positive number", remedy="use for example --weights 0.3,1"
            )
    if "intruders" not in settings.controls:
        raise UsageError(
            "the controls lack 'intruders', the edit that they are compared with",
            remedy="add intruders to the controls",
        )
    if not settings.max_task_cost >= 0.0:
        raise UsageError(
            f"the largest cost is {settings.max_task_cost:g}, but it must be 0 or more",
            remedy="use for example --max-cost 0.01",
        )
    return settings


def _listed(values: Sequence[object]) -> str:
    return printable(", ".join(map(str, values)))


def run_grid(
    survey: Survey,
    bench: Bench,
    settings: SweepSettings,
    *,
    journal: Journal | None,
    fitter: Fitter | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Measured:
    """Measure the base, the tuned model and every cell, reusing what the journal already holds.

    Cells that change the same weights by the same amount (nothing, where a model has no intruders; a shrink
    of everything, where only the surveyed matrices changed) are measured once.

    Args:
        survey: A survey of the pair.
        bench: A bench of the same pair.
        settings: Settings of the grid.
        journal: An open journal, or None to keep nothing. A later sweep with more strengths or controls can
            continue it.
        fitter: A fitter of the same pair, where fitted fixes are among the controls.
        on_progress: Called before the first model, and before and after each.

    Raises:
        UsageError: see :func:`checked_settings`.
        IntruscopeError: whatever the bench raised; everything journaled before is kept.
    """
    checked_settings(settings)
    found: dict[str, Measurement] = {}
    if journal is not None:
        records = journal.records.items()
        found = {key: _from_plain(record) for key, record in records if not key.startswith(_FIT)}
    fits = _fits(settings, fitter, journal, on_progress)
    planned = list(_planned(survey, settings, fits))
    kept = {cell.key: _kept_key(cell, digest) for cell, digest in planned}
    num_done = sum(key in found for key in (_BASE, _TUNED, *kept.values()))

    def report(key: str = "") -> None:
        on_progress(
            Progress(stage="measuring", done=num_done, total=len(planned) + 2, unit="models", item=key)
        )

    def measure(key: str, how: Callable[[], Measurement]) -> Measurement:
        nonlocal num_done
        if key not in found:
            report(key)
            found[key] = how()
            if journal is not None:
                journal.append(key, asdict(found[key]))
            num_done += 1
            report(key)
        return found[key]

    report()
    measure(_BASE, bench.base_text)
    same: dict[str, Measurement] = {_digest(()): measure(_TUNED, lambda: bench.edited(()))}
    for cell, digest in planned:
        if digest in same:
            measure(kept[cell.key], partial(same.__getitem__, digest))
        else:
            how = partial(_cell, survey, bench, settings, cell, fits)
            same[digest] = measure(kept[cell.key], how)
    return Measured(
        metric=bench.metric,
        protocol=bench.protocol,
        base_text=found[_BASE],
        tuned=found[_TUNED],
        cells=tuple(cell for cell, _ in planned),
        by_key={key: found[name] for key, name in kept.items()},
        fits={_fit_key(fix, weight): fit for (fix, weight), fit in fits.items()},
    )


def _fits(
    settings: SweepSettings, fitter: Fitter | None, journal: Journal | None, on_progress: OnProgress
) -> dict[tuple[str, float], Fit]:
    """Every fit of the grid, from the journal or anew; all of them before the first measurement."""
    wanted = [(name, float(w)) for name in settings.controls if name in FITS for w in settings.weights]
    if not wanted:
        return {}
    assert fitter is not None
    found: dict[tuple[str, float], Fit] = {}
    for number, (fix, weight) in enumerate(wanted):
        key = f"{_FIT}{fix}/{weight!r}/{fitter.digest}"
        if journal is not None and key in journal.records:
            found[fix, weight] = fitter.restored(fix, weight, journal.records[key])
            continue
        done, total = number * fitter.num_steps, len(wanted) * fitter.num_steps

        def report(progress: Progress, done: int = done, total: int = total) -> None:
            on_progress(replace(progress, done=done + progress.done, total=total))

        found[fix, weight] = fitter.fit(fix, weight, on_progress=report)
        if journal is not None:
            journal.append(key, found[fix, weight].plain())
    return found


def _kept_key(cell: SweepCell, digest: str) -> str:
    """The journal's key of a measurement; a fit may turn out otherwise with other data."""
    return cell.key if cell.strength is not None else f"{cell.key}/{digest[:16]}"


def _fit_key(fix: str, weight: float) -> str:
    return f"{fix}/weight/{weight!r}"


def _cell(
    survey: Survey,
    bench: Bench,
    settings: SweepSettings,
    cell: SweepCell,
    fits: Mapping[tuple[str, float], Fit],
) -> Measurement:
    if cell.strength is None:
        assert cell.weight is not None
        return bench.edited(fits[cell.control, cell.weight].edits)
    if cell.control == GUIDANCE.name:
        return bench.guided(cell.strength)
    if INTERVENTIONS[cell.control].moves_everything:
        return bench.interpolated(cell.strength)
    return bench.edited(_edits(survey, settings, cell.control, cell.which, cell.strength))


def _planned(
    survey: Survey, settings: SweepSettings, fits: Mapping[tuple[str, float], Fit]
) -> Iterator[tuple[SweepCell, str]]:
    """Every cell with a digest of what it does; the edits of interventions are not kept."""
    for control in settings.controls:
        if control in FITS:
            for weight in map(float, settings.weights):
                edits = fits[control, weight].edits
                cell = SweepCell(
                    control=control,
                    which=None,
                    strength=None,
                    num_matrices=len(edits),
                    change_norm=change_norm(survey, edits),
                    weight=weight,
                )
                yield cell, _digest(edits)
            continue
        if control == GUIDANCE.name:
            for gamma in map(float, settings.strengths):
                cell = SweepCell(control=control, which=None, strength=gamma, num_matrices=0, change_norm=0.0)
                yield cell, cell.key
            continue
        for which in settings.which if INTERVENTIONS[control].uses_selection else (None,):
            for strength in settings.strengths:
                edits = _edits(survey, settings, control, which, strength)
                cell = SweepCell(
                    control=control,
                    which=which,
                    strength=float(strength),
                    num_matrices=len({edit.name for edit in edits}),
                    change_norm=change_norm(survey, edits),
                )
                yield cell, _digest(edits)


def _edits(
    survey: Survey, settings: SweepSettings, control: str, which: str | None, strength: float
) -> tuple[MatrixEdit, ...]:
    return intervene(
        survey,
        kind=control,
        strength=strength,
        which=which or settings.which[0],
        seed=settings.seed,
    )


def _digest(edits: Sequence[MatrixEdit]) -> str:
    digest = hashlib.sha256()
    for edit in edits:
        digest.update(f"{edit.name}\0{edit.update_scale!r}\0{edit.num_directions}\0".encode())
        for part in (edit.left_OK, edit.change_K, edit.right_IK):
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _from_plain(record: dict[str, Any]) -> Measurement:
    items = {name: tuple(value) for name, value in record.items() if name != "num_cut"}
    return Measurement(**items, num_cut=record.get("num_cut", 0))
