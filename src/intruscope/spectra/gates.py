"""Gates for CI: ``intruders>0,energy>=0.01``. A comma means "any of them"."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from intruscope.errors import UsageError, printable
from intruscope.spectra.records import GateOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from intruscope.spectra.records import ScanReport

R = TypeVar("R")
Metric: TypeAlias = "tuple[str, Callable[[R, Collection[str]], float | None]]"
"""What a metric is, and how it is read off a report, given the codes of findings to ignore."""

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*([a-z_]+)\s*(>=|<=|==|>|<)\s*(-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)\s*")


def num_warnings(report: ScanReport, ignore: Collection[str] = ()) -> int:
    """Findings of severity warning or error, except those whose code is ignored."""
    findings = (*report.findings, *(finding for matrix in report.matrices for finding in matrix.findings))
    return sum(finding.severity != "info" and finding.code not in ignore for finding in findings)


METRICS: dict[str, Metric[ScanReport]] = {
    "intruders": (
        "intruders over all matrices in the paper's scope",
        lambda report, _: report.totals.num_intruders,
    ),
    "excess_over_chance": (
        "intruders beyond what random directions give",
        lambda report, _: report.totals.excess_over_chance,
    ),
    "matrices": (
        "matrices with at least one intruder",
        lambda report, _: report.totals.matrices_with_intruders,
    ),
    "undecided": ("borderline and degenerate vectors", lambda report, _: report.totals.num_undecided),
    "update_size": (
        "size of the update, ‖ΔW‖_F / ‖W‖_F over all matrices together",
        lambda report, _: report.totals.relative_update_norm,
    ),
    "energy": (
        "largest share of a tuned matrix's energy in its intruders",
        lambda report, _: report.totals.max_tuned_energy_fraction or 0.0,
    ),
    "update_energy": (
        "largest share of an update's energy in the intruders",
        lambda report, _: report.totals.max_update_energy_fraction or 0.0,
    ),
    "warnings": ("findings of severity warning or error, except ignored ones", num_warnings),
}
"""Name of each metric, with what it is and how it is read off a report; None where the report does not
say."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition under which a command fails."""

    text: str
    metric: str
    comparison: str
    bound: float

    def outcome(
        self, report: R, metrics: Mapping[str, Metric[R]], *, ignore: Collection[str] = ()
    ) -> GateOutcome:
        """Whether a report meets the condition.

        Args:
            report: The report of a scan, or of another command with metrics.
            metrics: The command's table of metrics.
            ignore: Codes of findings that do not count as warnings.

        Returns:
            The metric's value and the answer. A gate whose metric is unknown counts as tripped.
        """
        value = metrics[self.metric][1](report, ignore)
        tripped = value is None or _COMPARE[self.comparison](value, self.bound)
        return GateOutcome(gate=self.text, value=None if value is None else float(value), tripped=tripped)


def checked(report: ScanReport, gates: Sequence[Gate], *, ignore: Collection[str] = ()) -> ScanReport:
    """The report with the outcome of each gate in ``gates``, as its JSON will have it.

    Args:
        report: The scan.
        gates: What :func:`parse_gates` read.
        ignore: Codes of findings that do not count as warnings, as ``other-base``.
    """
    return replace(report, gates=tuple(gate.outcome(report, METRICS, ignore=ignore) for gate in gates))


def parse_gates(text: str, metrics: Mapping[str, Any] = METRICS) -> tuple[Gate, ...]:
    """Read ``METRIC OP NUMBER``, several separated by commas.

    Args:
        text: As the user wrote it.
        metrics: The command's table of metrics.

    Raises:
        UsageError: not of that form, or an unknown metric (the known ones are listed).
    """
    gates = []
    for part in text.split(","):
        match = _FORM.fullmatch(part)
        if match is None or match[1] not in metrics:
            known = ", ".join(metrics)
            example = next(iter(metrics))
            raise UsageError(
                f"cannot read the gate {printable(part)!r}",
                remedy=f"write a metric, an operator and a number, as in {example}>0; metrics are {known}; "
                "operators > >= < <= ==",
            )
        gates.append(Gate(text=part.strip(), metric=match[1], comparison=match[2], bound=float(match[3])))
    return tuple(gates)
