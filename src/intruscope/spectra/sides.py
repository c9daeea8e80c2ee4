"""From bounds to verdicts: one side of one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.linalg.lowrank import share_inside
from intruscope.spectra.records import (
    EPSILON_GRID,
    K_GRID,
    Certificate,
    GridCount,
    Match,
    NullCount,
    ScanSettings,
    Side,
    SideReport,
    SimilarityMap,
    Verdict,
)

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.linalg.alignment import Alignments
    from intruscope.linalg.topk import TopTriplets

_STRENGTH: dict[Certificate, int] = {"probabilistic": 0, "proved": 1, "dense": 2}


def side_report(
    side: Side,
    found: Alignments,
    spectrum: TopTriplets,
    settings: ScanSettings,
    *,
    tuned_frobenius_norm: float,
    update: Tensor | tuple[Tensor, Tensor],
    null: NullCount | None,
    chance: NullCount | None,
    similarity: SimilarityMap | None,
) -> SideReport:
    """Turn certified alignments into verdicts, counts and energy shares.

    Args:
        side: Which vectors the alignments are of.
        found: The bounds.
        spectrum: The tuned vectors.
        settings: For epsilon.
        tuned_frobenius_norm: ‖W_tuned‖_F.
        update: ΔW (O, I) or its factors.
        null: Counts for the rotated update, if asked for.
        chance: Counts for random directions, sampled from spectra.
        similarity: The map, if asked for.
    """
    count = len(spectrum.singular_values)
    verdicts = tuple(verdict(found, i, settings.epsilon) for i in range(count))
    intruders = [i for i, each in enumerate(verdicts) if each == "intruder"]
    total = tuned_frobenius_norm**2
    inside = float(spectrum.singular_values[intruders].square().sum()) if intruders else 0.0
    return SideReport(
        side=side,
        alignment_lower=tuple(found.lower.tolist()),
        alignment_upper=tuple(found.upper.tolist()),
        verdicts=verdicts,
        certificates=tuple(
            min(c, spectrum.certificate, key=_STRENGTH.__getitem__) for c in found.certificates
        ),
        alignment_certificates=found.certificates,
        outside_column_space=None
        if found.outside_fraction is None
        else tuple(found.outside_fraction.tolist()),
        matches=tuple(_match(found, spectrum, i) for i in range(count)),
        num_intruders=len(intruders),
        grid=_grid(found, count),
        tuned_energy_fraction=inside / total if total > 0.0 else None,
        update_energy_fraction=share_inside(
            spectrum.left_MK[:, intruders], spectrum.right_NK[:, intruders], update=update
        ),
        null=null,
        chance=chance,
        similarity=similarity,
        alignment_failure_probability=found.failure_probability,
    )


def verdict(found: Alignments, index: int, epsilon: float) -> Verdict:
    """What the bounds on one vector's alignment say."""
    if float(found.upper[index]) < epsilon:
        return "intruder"
    if float(found.lower[index]) >= epsilon:
        return "aligned"
    return "degenerate" if bool(found.degenerate[index]) else "borderline"


def _match(found: Alignments, spectrum: TopTriplets, index: int) -> Match | None:
    best, value = int(found.best_index[index]), float(found.best_value[index])
    # A vector "matches" the one that holds more than half of its squared length; no other can.
    if best < 0 or value <= 0.0 or float(found.lower[index]) ** 2 <= 0.5:
        return None
    change = float(spectrum.singular_values[index]) / value - 1.0
    return Match(base_index=best, base_singular_value=value, relative_change=change)


def _grid(found: Alignments, count: int) -> tuple[GridCount, ...]:
    """Counts for every epsilon and k in one pass over the bounds."""
    cuts = sorted({k for k in K_GRID if k < count} | {count}) if count else []
    counts = []
    for epsilon in EPSILON_GRID:
        intruder = found.upper < epsilon
        undecided = ~intruder & (found.lower < epsilon)
        for k in cuts:
            counts.append(
                GridCount(
                    epsilon=epsilon,
                    k=k,
                    num_intruders=int(intruder[:k].sum()),
                    num_undecided=int(undecided[:k].sum()),
                )
            )
    return tuple(counts)
