"""Times of rounds to figures with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.forgetting.intervals import Interval
from intruscope.profiling.records import FULL, NULL, PHASES, ProfileCell, SettingReport, ShapeReport
from intruscope.profiling.statistics import median_interval, ratio_interval
from intruscope.profiling.verdicts import MAX_RESOLUTION, resolution, verdict_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.profiling.records import Built, Candidate, Memory, Phases
    from intruscope.profiling.rounds import Samples

_STEP = "step"


def results_of(
    chosen: Sequence[Candidate],
    samples: Samples,
    *,
    built: Mapping[str, Built],
    memory: Mapping[ProfileCell, Memory],
    failures: Mapping[str, str],
    reference: str,
    level: float,
) -> tuple[SettingReport, ...]:
    """The report of every setting.

    Args:
        chosen: All of them, in order.
        samples: Seconds by cell and round.
        built: What stood ready.
        memory: Of cells that took their first steps.
        failures: Why settings have no figures, or no more of them.
        reference: What ratios are over.
        level: Of the interval of each ratio.
    """

    def cells(name: str) -> tuple[ShapeReport, ...]:
        return tuple(
            _cell(cell, samples, memory, reference=reference, level=level)
            for cell in memory
            if cell.setting == name and samples.get(cell)
        )

    return tuple(
        SettingReport(
            candidate=candidate,
            failure=failures.get(candidate.name),
            num_trained=built[candidate.name].num_trained if candidate.name in built else None,
            num_matrices=built[candidate.name].num_matrices if candidate.name in built else None,
            cells=cells(candidate.name),
        )
        for candidate in chosen
    )


def _cell(
    cell: ProfileCell, samples: Samples, memory: Mapping[ProfileCell, Memory], *, reference: str, level: float
) -> ShapeReport:
    taken = samples[cell]
    seconds = {name: median_interval(_parts(taken, name)) for name in (*PHASES, _STEP)}
    step, tokens = seconds[_STEP], cell.shape.tokens
    beside = ProfileCell(reference, cell.shape)
    is_reference = cell.setting == reference
    ratios = None if is_reference else _ratios(taken, samples[beside], level)
    return ShapeReport(
        batch=cell.shape.batch,
        length=cell.shape.length,
        num_rounds=len(taken),
        seconds=seconds,
        ratios=ratios,
        tokens_per_second=Interval(
            estimate=tokens / step.estimate, low=tokens / step.high, high=tokens / step.low, level=step.level
        ),
        memory=memory[cell],
        memory_ratio=None if is_reference else _ratio(memory[cell].tensor_bytes, memory[beside].tensor_bytes),
        resident_ratio=None
        if is_reference
        else _ratio(memory[cell].resident_bytes, memory[beside].resident_bytes),
        verdict=None
        if ratios is None or cell.setting == NULL
        else verdict_of(ratios[_STEP], level, unresolved=_unresolved(samples, cell, reference, level)),
        rounds=tuple(taken),
    )


def _ratios(taken: Sequence[Phases], beside: Sequence[Phases], level: float) -> dict[str, Interval]:
    num = min(len(taken), len(beside))
    return {
        name: ratio_interval(_parts(taken[:num], name), _parts(beside[:num], name), level=level)
        for name in (*PHASES, _STEP)
    }


def _parts(taken: Sequence[Phases], name: str) -> list[float]:
    return [getattr(phases, name) for phases in taken]


def _ratio(num_bytes: int, beside: int) -> float | None:
    return num_bytes / beside if beside else None


def _unresolved(samples: Samples, cell: ProfileCell, reference: str, level: float) -> float:
    """What full fine-tuning's ratio to itself leaves open at this shape."""
    again, full = samples.get(ProfileCell(NULL, cell.shape)), samples.get(ProfileCell(FULL, cell.shape))
    if reference != FULL or not again or not full:
        return MAX_RESOLUTION
    return resolution(_ratios(again, full, level)[_STEP])
