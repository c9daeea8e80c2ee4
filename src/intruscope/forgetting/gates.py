"""Metrics of ``forget --fail-on``; the grammar is that of scans, see :mod:`intruscope.spectra.gates`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.errors import UsageError
from intruscope.spectra.gates import Gate, Metric, parse_gates

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from intruscope.forgetting.records import ForgettingReport

LEVEL = 0.05
"""A skill counts as lost where its adjusted p is below this."""


def _losses(report: ForgettingReport) -> list[float] | None:
    """How much worse each skill became; None where no skill was measured."""
    return None if report.skills is None else [each.loss.estimate for each in report.skills.figures]


def _skill_loss(report: ForgettingReport, _: Collection[str]) -> float | None:
    found = _losses(report)
    return None if found is None else max(found)


def _skills_lost(report: ForgettingReport, _: Collection[str]) -> float | None:
    if report.skills is None:
        return None
    return sum(each.loss.estimate > 0.0 and each.p_adjusted < LEVEL for each in report.skills.figures)


def _warnings(report: ForgettingReport, ignore: Collection[str]) -> float:
    return sum(each.severity != "info" and each.code not in ignore for each in report.findings)


METRICS: dict[str, Metric[ForgettingReport]] = {
    "forgetting": (
        "loss of the tuned model minus that of the base, in nats per token",
        lambda report, _: None if report.forgetting is None else report.forgetting.estimate,
    ),
    "forgetting_low": (
        "lower end of the interval of that difference",
        lambda report, _: None if report.forgetting is None else report.forgetting.low,
    ),
    "skill_loss": ("largest fall of a skill's score (rise, where lower is better)", _skill_loss),
    "skills_lost": (f"skills that got worse with an adjusted p below {LEVEL:g}", _skills_lost),
    "warnings": ("findings of severity warning or error, except ignored ones", _warnings),
}
"""Name of each metric, with what it is and how it is read off a report; None where the report does not
say."""


def parse_forgetting_gates(text: str, *, has_text: bool, has_skills: bool) -> tuple[Gate, ...]:
    """Read the conditions of ``forget --fail-on``.

    Args:
        text: ``METRIC OP NUMBER``, several separated by commas.
        has_text: A text will be measured.
        has_skills: Skills will be measured.

    Raises:
        UsageError: not of that form, an unknown metric, or one of a part that will not be measured.
    """
    gates = parse_gates(text, METRICS)
    for gate in gates:
        needs = {"forgetting": ("--text", has_text), "skill": ("--skills", has_skills)}
        for start, (flag, is_given) in needs.items():
            if gate.metric.startswith(start) and not is_given:
                raise UsageError(
                    f"the gate '{gate.text}' cannot be checked without {flag}",
                    remedy=f"add {flag}, or choose another metric",
                )
    return gates


def checked(
    report: ForgettingReport, gates: Sequence[Gate], *, ignore: Collection[str] = ()
) -> ForgettingReport:
    """The report with the outcome of each gate in ``gates``, as its JSON will have it.

    Args:
        report: The measurement.
        gates: What :func:`parse_forgetting_gates` read.
        ignore: Codes of findings that do not count as warnings.
    """
    return replace(report, gates=tuple(gate.outcome(report, METRICS, ignore=ignore) for gate in gates))
