"""What must hold between bounds and the naive twin, as sentences about what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from linalg_oracle import ULP, Truth, naive_alignment

if TYPE_CHECKING:
    from linalg_cases import Case

    from intruscope.linalg.alignment import Alignments

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHARP = 8.0
"""Values closer than this many roundings have no vectors of their own: the bounds must say so."""
BLUNT = 64.0
"""Values further apart than this have: "degenerate" would be an excuse."""


@dataclass
class Tally:
    """Faults found, and how many verdicts were left open."""

    faults: list[str] = field(default_factory=list)
    num_verdicts: int = 0
    num_undecided: int = 0

    @property
    def undecided_fraction(self) -> float:
        return self.num_undecided / max(1, self.num_verdicts)

    def report(self) -> str:
        return "\n".join(self.faults[:20])


def bound_faults(found: Alignments, truth: Truth, label: str) -> list[str]:
    """Bounds that miss what some valid choice of bases attains."""
    lower, upper = found.lower.numpy(), found.upper.numpy()
    slack = truth.error + 1e-12
    missed = (upper < truth.supremum - slack) | (lower > truth.attained + slack) | (lower > upper)
    missed |= (lower < 0) | (upper > 1) | ~np.isfinite(lower) | ~np.isfinite(upper)
    return [
        f"{label} vector {j} ({found.certificates[j]}): [{lower[j]:.9g}, {upper[j]:.9g}] misses "
        f"{truth.alignment[j]:.9g} in [{truth.attained[j]:.9g}, {truth.supremum[j]:.9g}] "
        f"± {truth.error[j]:.1e}, degenerate {bool(found.degenerate[j])}"
        for j in np.nonzero(missed)[0]
    ]


def compare(
    found: Alignments, case: Case, k: int, side: str, label: str, tally: Tally, *, blunt: float = BLUNT
) -> Truth:
    """Hold the bounds, verdicts and degeneracies of one side against the naive twin."""
    base, tuned = case.base_double, case.tuned_double
    truth = naive_alignment(base, tuned, k, side=side, resolution=SHARP)
    tally.faults += bound_faults(found, truth, f"{label} {side}")
    lower, upper, degenerate = found.lower.numpy(), found.upper.numpy(), found.degenerate.numpy()
    slack = truth.error + 1e-12
    for epsilon in THRESHOLDS:
        intruder, aligned = upper < epsilon, lower >= epsilon
        wrong = ~degenerate & (
            (intruder & (truth.attained >= epsilon + slack)) | (aligned & (truth.supremum < epsilon - slack))
        )
        tally.faults += [f"{label} {side} vector {j}: wrong at {epsilon}" for j in np.nonzero(wrong)[0]]
        tally.num_verdicts += len(lower)
        tally.num_undecided += int((~degenerate & ~intruder & ~aligned).sum())
    if degenerate.any():
        coarse = naive_alignment(base, tuned, k, side=side, resolution=blunt)
        excuses = degenerate & ~coarse.clustered & (coarse.error < 0.1)
        tally.faults += [f"{label} {side} vector {j}: needlessly degenerate" for j in np.nonzero(excuses)[0]]
    return truth


def float32_resolution(rows: int, columns: int) -> float:
    """BLUNT for the float32 Krylov path, whose stated recurrence error is near 1e-6 of the norm."""
    return 1e-4 / (ULP * max(rows, columns) ** 0.5)
