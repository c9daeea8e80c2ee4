"""Gates for CI: ``intruders>0,energy>=0.01``. A comma means "any of them"."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.spectra.records import ScanReport, SideReport

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([a-z_]+)\s*(>=|<=|==|>|<)\s*([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)\s*")


def _sides(report: ScanReport) -> list[SideReport]:
    """The first side of every matrix in the paper's scope: what the totals of a report count."""
    return [matrix.sides[0] for matrix in report.matrices if matrix.scope == "paper" and matrix.sides]


def _undecided(report: ScanReport) -> float:
    verdicts = (verdict for side in _sides(report) for verdict in side.verdicts)
    return sum(verdict in {"borderline", "degenerate"} for verdict in verdicts)


METRICS: dict[str, tuple[str, Callable[[ScanReport], float]]] = {
    "intruders": (
        "intruders over all matrices in the paper's scope",
        lambda report: sum(side.num_intruders for side in _sides(report)),
    ),
    "matrices": (
        "matrices with at least one intruder",
        lambda report: sum(side.num_intruders > 0 for side in _sides(report)),
    ),
    "undecided": ("borderline and degenerate vectors", _undecided),
    "energy": (
        "largest share of a tuned matrix's energy in its intruders",
        lambda report: max((side.tuned_energy_fraction or 0.0 for side in _sides(report)), default=0.0),
    ),
    "update_energy": (
        "largest share of an update's energy in the intruders",
        lambda report: max((side.update_energy_fraction or 0.0 for side in _sides(report)), default=0.0),
    ),
    "warnings": (
        "findings of severity warning or error",
        lambda report: sum(
            finding.severity != "info"
            for finding in (*report.findings, *(f for m in report.matrices for f in m.findings))
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition under which a scan fails."""

    text: str
    metric: str
    comparison: str
    bound: float

    def trips(self, report: ScanReport) -> float | None:
        """The metric's value if it meets the condition, else None."""
        value = float(METRICS[self.metric][1](report))
        return value if _COMPARE[self.comparison](value, self.bound) else None


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Read ``METRIC OP NUMBER``, several separated by commas.

    Raises:
        UsageError: not of that form, or an unknown metric (the known ones are listed).
    """
    gates = []
    for part in text.split(","):
        match = _FORM.fullmatch(part)
        if match is None or match[1] not in METRICS:
            known = ", ".join(METRICS)
            raise UsageError(
                f"the gate {printable(part)!r} is not METRIC OP NUMBER with a known metric",
                remedy=f"write for example intruders>0; metrics are {known}; operators > >= < <= ==",
            )
        gates.append(Gate(text=part.strip(), metric=match[1], comparison=match[2], bound=float(match[3])))
    return tuple(gates)
