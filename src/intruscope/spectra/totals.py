"""The sums of a scan, counted in one place: over the first side of the matrices of one scope."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intruscope.spectra.records import ChanceMethod, MatrixReport, NullCount, SideReport

_NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over several matrices: the smallest, the median and the largest."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Number of intruders to expect when the update keeps its singular values and its directions are random.

    Attributes:
        expected: Mean over random draws, summed over the matrices.
        low, high: Where 95% of random draws lie (normal approximation of the sum).
        standard_error: Of ``expected``, from the number of draws.
        method: How the draws were made; see :class:`intruscope.spectra.records.NullCount`.
    """

    expected: float
    low: float
    high: float
    standard_error: float
    method: ChanceMethod


@dataclass(frozen=True, kw_only=True)
class ScanTotals:
    """The sums of a scan over one scope; vectors are those of the first side that was scanned.

    Attributes:
        num_matrices: Matrices in the scope.
        num_measured: Of these, matrices with a result.
        num_vectors: Tuned singular vectors that were examined.
        num_intruders: Of these, intruders.
        num_undecided: Of these, borderline or degenerate ones.
        matrices_with_intruders: Matrices with at least one intruder.
        verdicts, certificates: Number of vectors by verdict and by certificate.
        chance: Expected number of intruders by chance; None where a matrix has no such count.
        update_norm: ‖ΔW‖_F over all matrices together.
        relative_update_norm: That over ‖W_base‖_F of the same matrices; None for a base of zeros.
        relative_update_norms: ‖ΔW‖_F / ‖W_base‖_F of the single matrices.
        effective_ranks: Effective ranks of the updates.
        top_energy_fraction: Share of ‖ΔW‖_F², over all matrices together, within the base's k leading
            singular directions on both sides (OPLoRA's ρ_k); None where a matrix has no such figure.
        top_energy_chance: What it would be in random directions.
        max_tuned_energy_fraction: Largest share of ‖W_tuned‖_F² that lies in a matrix's intruders.
        max_update_energy_fraction: Largest share of ‖ΔW‖_F² that lies in a matrix's intruders.
    """

    num_matrices: int
    num_measured: int
    num_vectors: int
    num_intruders: int
    num_undecided: int
    matrices_with_intruders: int
    verdicts: Mapping[str, int]
    certificates: Mapping[str, int]
    chance: Chance | None
    update_norm: float
    relative_update_norm: float | None
    relative_update_norms: Spread | None
    effective_ranks: Spread | None
    top_energy_fraction: float | None
    top_energy_chance: float | None
    max_tuned_energy_fraction: float | None
    max_update_energy_fraction: float | None

    @property
    def intruder_fraction(self) -> float:
        """Share of the examined vectors that are intruders; 0 where none was examined."""
        return self.num_intruders / self.num_vectors if self.num_vectors else 0.0

    @property
    def excess_over_chance(self) -> float | None:
        """Intruders beyond what random directions give; negative where there are fewer."""
        return None if self.chance is None else self.num_intruders - self.chance.expected


def total(matrices: Iterable[MatrixReport]) -> ScanTotals:
    """Sum up matrices; those without a result count as matrices only."""
    matrices = list(matrices)
    measured = [matrix for matrix in matrices if matrix.sides]
    sides = [matrix.sides[0] for matrix in measured]
    verdicts = Counter(verdict for side in sides for verdict in side.verdicts)
    updates = [matrix.update for matrix in measured if matrix.update is not None]
    norm = math.sqrt(sum(update.frobenius_norm**2 for update in updates))
    base = math.sqrt(
        sum((matrix.base_frobenius_norm or 0.0) ** 2 for matrix in measured if matrix.update is not None)
    )
    return ScanTotals(
        num_matrices=len(matrices),
        num_measured=len(measured),
        num_vectors=sum(len(side.verdicts) for side in sides),
        num_intruders=sum(side.num_intruders for side in sides),
        num_undecided=verdicts["borderline"] + verdicts["degenerate"],
        matrices_with_intruders=sum(side.num_intruders > 0 for side in sides),
        verdicts=dict(verdicts.most_common()),
        certificates=dict(Counter(each for side in sides for each in side.certificates).most_common()),
        chance=_chance(sides),
        update_norm=norm,
        relative_update_norm=norm / base if base > 0.0 else None,
        relative_update_norms=_spread(update.relative_frobenius_norm for update in updates),
        effective_ranks=_spread(
            None if update.effective_rank is None else update.effective_rank.value for update in updates
        ),
        top_energy_fraction=_over_energy([(u.frobenius_norm, u.top_energy_fraction) for u in updates]),
        top_energy_chance=_over_energy([(u.frobenius_norm, u.top_energy_chance) for u in updates]),
        max_tuned_energy_fraction=_largest(side.tuned_energy_fraction for side in sides),
        max_update_energy_fraction=_largest(side.update_energy_fraction for side in sides),
    )


def _chance(sides: Sequence[SideReport]) -> Chance | None:
    """Rotated updates where they were asked for, else the counts that come with every scan."""
    for counts in ([side.null for side in sides], [side.chance for side in sides]):
        found = [count for count in counts if count is not None]
        if found and len(found) == len(sides):
            return _summed(found)
    return None


def _summed(counts: Sequence[NullCount]) -> Chance:
    expected = sum(count.mean for count in counts)
    variances = [statistics.variance(count.counts) if count.trials > 1 else 0.0 for count in counts]
    error = math.sqrt(sum(v / count.trials for v, count in zip(variances, counts, strict=True)))
    # A draw scatters around the true mean, which is known up to the error.
    spread = _NORMAL_95 * math.sqrt(sum(variances) + error**2)
    methods = {count.method for count in counts}
    return Chance(
        expected=expected,
        low=max(0.0, expected - spread),
        high=expected + spread,
        standard_error=error,
        method=methods.pop() if len(methods) == 1 else "modelled-spectra",
    )


def _over_energy(figures: Sequence[tuple[float, float | None]]) -> float | None:
    """The share of all matrices together, from norms and shares; a zero update has no share and no weight."""
    known = [(norm, share) for norm, share in figures if norm > 0.0 and share is not None]
    if not known or len(known) < sum(norm > 0.0 for norm, _ in figures):
        return None
    largest = max(norm for norm, _ in known)  # squares of tiny norms would vanish
    weights = [(norm / largest) ** 2 for norm, _ in known]
    return sum(w * share for w, (_, share) in zip(weights, known, strict=True)) / sum(weights)


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(low=min(known), median=statistics.median(known), high=max(known))


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
