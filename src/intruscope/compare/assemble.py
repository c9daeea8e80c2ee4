"""From the matrices of a comparison to its report: sums over matrices, and what the reader must know."""

from __future__ import annotations

import math
import statistics
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from intruscope.adapters.folder import AdapterSource
from intruscope.compare.records import (
    CompareReport,
    IntruderCount,
    Member,
    MergeReport,
    PairReport,
    Preflight,
)
from intruscope.errors import printable
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from intruscope.compare.matrix_task import MatrixComparison
    from intruscope.compare.opening import Opened
    from intruscope.compare.records import MergeModule, PairModule
    from intruscope.compare.settings import CompareSettings

SHARED_A_OVERLAP = 0.25
"""Overlap of the row spaces, beyond chance, from which two adapters are taken to have started from one A."""
SHARED_A_RATIO = 4.0
"""How many times the overlap of the column spaces, beyond chance, it must be: related tasks overlap on both
sides, a common start on the input side alone."""


def assemble(
    opened: Opened,
    settings: CompareSettings,
    found: Mapping[str, MatrixComparison],
    failed: Sequence[Finding],
    *,
    environment: dict[str, Any],
) -> CompareReport:
    """Make the report.

    Args:
        opened: The models.
        settings: What was computed.
        found: What was found about each matrix, by name.
        failed: Findings of the matrices that gave no result.
        environment: Versions.
    """
    whole = [each.merge for each in found.values() if each.merge is not None]
    refused = [finding for each in found.values() for finding in each.findings]
    pairs = tuple(
        _pair(opened.labels, (first, second), found, whole)
        for first in range(len(opened.labels))
        for second in range(first + 1, len(opened.labels))
    )
    members = _members(opened, whole)
    return CompareReport(
        base=opened.base,
        fine_tunes=members,
        settings=settings,
        pairs=pairs,
        merge=_merge(settings, len(members), whole),
        findings=(
            *opened.findings,
            *failed,
            *refused,
            *_zero(members),
            *(finding for pair in pairs for finding in _same_start(pair)),
        ),
        complete=opened.complete and not failed and not refused,
        environment=environment,
    )


def _members(opened: Opened, whole: Sequence[MergeModule]) -> tuple[Member, ...]:
    energies = [_sum(module.energies[place] for module in whole) for place in range(len(opened.labels))]
    total = _sum(_sum_energy(module) for module in whole)
    compared = {module.name for module in whole}
    return tuple(
        Member(
            label=label,
            name=source.name,
            kind=source.kind.title if isinstance(source, AdapterSource) else "full checkpoint",
            num_matrices=sum(
                pairs[place] is not None and name in compared for name, pairs in opened.matrices.items()
            ),
            energy=energies[place],
            energy_fraction=energies[place] / sum(energies) if sum(energies) > 0.0 else None,
            share=None
            if total <= 0.0
            else _sum(
                module.shares[place] * _sum_energy(module) for module in whole if module.shares is not None
            )
            / total,
        )
        for place, (label, source) in enumerate(zip(opened.labels, opened.sources, strict=True))
    )


def _sum_energy(module: MergeModule) -> float:
    """‖S‖_F² of one matrix."""
    return 0.0 if module.shares is None else (module.energy_ratio or 0.0) * sum(module.energies)


# --- pairs -----------------------------------------------------------------------------------------


def _pair(
    labels: Sequence[str],
    places: tuple[int, int],
    found: Mapping[str, MatrixComparison],
    whole: Sequence[MergeModule],
) -> PairReport:
    first, second = places
    energies = {module.name: (module.energies[first], module.energies[second]) for module in whole}
    shapes = {module.name: module.shape for module in whole}
    modules = [
        pair.module for each in found.values() for pair in each.pairs if (pair.first, pair.second) == places
    ]
    # A matrix of which some third update is unreadable has figures of this pair, and no part in its sums.
    counted = [module for module in modules if module.name in energies]
    norm_a, norm_b = (math.sqrt(_sum(each[i] for each in energies.values())) for i in (0, 1))
    norms = norm_a * norm_b
    sizes = [math.prod(shapes[module.name]) for module in counted]

    def product(module: PairModule) -> float:
        return math.sqrt(energies[module.name][0]) * math.sqrt(energies[module.name][1])

    def spread_of_sum(get: Callable[[PairModule], float | None]) -> float | None:
        """Of Σ⟨ΔW_a, ΔW_b⟩ / norms: the matrices' directions are independent of each other."""
        values = [get(module) for module in counted if product(module) > 0.0]
        if norms == 0.0 or not values or any(value is None for value in values):
            return None
        squares = (
            ((get(module) or 0.0) * product(module)) ** 2 for module in counted if product(module) > 0.0
        )
        return math.sqrt(_sum(squares)) / norms

    def over_entries(get: Callable[[PairModule], float | None], *, is_spread: bool = False) -> float | None:
        """Mean over the entries of all matrices; of standard deviations, the deviation of that mean."""
        parts = [
            (size, value)
            for module, size in zip(counted, sizes, strict=True)
            if (value := get(module)) is not None
        ]
        total = sum(size for size, _ in parts)
        if not total:
            return None
        if is_spread:
            return math.sqrt(_sum((size * value) ** 2 for size, value in parts)) / total
        return _sum(size * value for size, value in parts) / total

    shared = [m.num_shared_intruders for m in counted if m.num_shared_intruders is not None]
    return PairReport(
        a=labels[first],
        b=labels[second],
        cosine=_clamped(_sum((m.cosine or 0.0) * product(m) for m in counted) / norms) if norms else None,
        cosine_random_spread=spread_of_sum(lambda m: m.cosine_random_spread),
        cosine_shared_a_spread=spread_of_sum(lambda m: m.cosine_shared_a_spread),
        norm_ratio=norm_b / norm_a if norms else None,
        left_overlap=_mean(m.left_overlap for m in counted),
        left_overlap_random=_mean(m.left_overlap_random for m in counted),
        right_overlap=_mean(m.right_overlap for m in counted),
        right_overlap_random=_mean(m.right_overlap_random for m in counted),
        sign_conflict=over_entries(lambda m: m.sign_conflict),
        sign_conflict_error=over_entries(lambda m: m.sign_conflict_error, is_spread=True),
        sign_conflict_random_spread=over_entries(lambda m: m.sign_conflict_random_spread, is_spread=True),
        sign_conflict_shared_a_spread=over_entries(lambda m: m.sign_conflict_shared_a_spread, is_spread=True),
        num_shared_intruders=sum(shared) if shared else None,
        modules=tuple(modules),
    )


# --- the merge -------------------------------------------------------------------------------------


def _merge(settings: CompareSettings, count: int, whole: Sequence[MergeModule]) -> MergeReport:
    parts = _sum(sum(module.energies) for module in whole)
    several = [module for module in whole if sum(energy > 0.0 for energy in module.energies) > 1]
    inflations = [module.inflation for module in several if module.inflation is not None]
    flights = [module.preflight for module in whole if module.preflight is not None]
    return MergeReport(
        weight=settings.weight or 1.0 / count,
        energy_ratio=_sum(_sum_energy(module) for module in whole) / parts if parts > 0.0 else None,
        median_inflation=_median(inflations),
        max_inflation=max(inflations, default=None),
        median_inflation_random=_median(module.inflation_random for module in several),
        median_inflation_shared_a=_median(module.inflation_shared_a for module in several),
        modules=tuple(whole),
        preflight=_sum_of_flights(flights) if flights else None,
    )


def _sum_of_flights(flights: Sequence[Preflight]) -> Preflight:
    def parts(get: Callable[[Preflight], Sequence[IntruderCount]]) -> tuple[IntruderCount, ...]:
        return tuple(map(_sum_of_counts, zip(*map(get, flights), strict=True)))

    return Preflight(
        num_vectors=sum(flight.num_vectors for flight in flights),
        base_energy=_sum(flight.base_energy for flight in flights),
        parts=parts(lambda flight: flight.parts),
        merge=_sum_of_counts([flight.merge for flight in flights]),
        random_parts=parts(lambda flight: flight.random_parts),
        random_merge=_sum_of_counts([flight.random_merge for flight in flights]),
        equal_norm=_sum_of_counts([flight.equal_norm for flight in flights]),
    )


def _sum_of_counts(counts: Sequence[IntruderCount]) -> IntruderCount:
    sums: dict[str, Any] = {}
    for each in fields(IntruderCount):
        values = [getattr(count, each.name) for count in counts]
        sums[each.name] = None if any(value is None for value in values) else sum(values)
    return IntruderCount(**sums)


# --- findings --------------------------------------------------------------------------------------


def _zero(members: Sequence[Member]) -> list[Finding]:
    return [
        Finding(
            code="zero-update",
            severity="warning",
            message=f"{printable(member.label)} changes nothing: all its updates are zero. Was it ever "
            "trained?",
        )
        for member in members
        if member.energy == 0.0 and member.num_matrices
    ]


def _same_start(pair: PairReport) -> list[Finding]:
    """A common A at the start: PEFT draws it from the seed alone, so one seed gives two adapters the same."""
    left = _beyond(pair.left_overlap, pair.left_overlap_random)
    right = _beyond(pair.right_overlap, pair.right_overlap_random)
    is_low_rank = any(module.cosine_shared_a_spread is not None for module in pair.modules)
    if left is None or right is None or not is_low_rank:
        return []
    if right < SHARED_A_OVERLAP or right < SHARED_A_RATIO * left:
        return []
    message = (
        f"{printable(pair.a)} and {printable(pair.b)} probably started from the same A: their row spaces "
        f"overlap by {pair.right_overlap:.2f} (chance {pair.right_overlap_random:.3f}), their column spaces "
        f"by {pair.left_overlap:.3f} (chance {pair.left_overlap_random:.3f}). PEFT draws A from the seed, so "
        "equal seeds give equal A; read the cosine and the sign conflict against the null with shared A"
    )
    return [Finding(code="shared-start", severity="info", message=message)]


def _beyond(overlap: float | None, chance: float | None) -> float | None:
    """Overlap beyond chance, as a fraction of the most that is possible."""
    if overlap is None or chance is None or chance >= 1.0:
        return None
    return max(0.0, (overlap - chance) / (1.0 - chance))


# --- sums ------------------------------------------------------------------------------------------


def _sum(values: Iterable[float]) -> float:
    return math.fsum(values)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _clamped(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))
