"""What a verification found, in one or two sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.verify.records import ModuleCheck, VerifyReport

ORDER = (
    "missing",
    "transposed",
    "wrong sign",
    "wrong scale",
    "other change",
    "not applied",
    "open",
    "applied",
)
"""Statuses of modules, those that need attention first."""


def verify_sentence(report: VerifyReport) -> str:
    """Answer the question of the command.

    Args:
        report: Of :func:`intruscope.verify.run.verify`.
    """
    what = "The adapter is" if len(report.adapters) == 1 else f"The {len(report.adapters)} adapters are"
    total = len(report.modules)
    applied = report.counts["applied"]
    return f"{_answer(report, what, applied, total)} {_rest(report)}"


def _answer(report: VerifyReport, what: str, applied: int, total: int) -> str:
    if not total:
        return f"{what} empty: no module of the base is changed."
    if report.verdict == "applied":
        return f"{what} applied in all {_modules(total)}."
    counts = ", ".join(f"{report.counts[status]} {status}" for status in ORDER if report.counts[status])
    if report.verdict == "open":
        if applied:
            where = f"in {applied} of {_modules(total)}" if applied < total else f"in all {_modules(total)}"
            return f"{what} applied {where}, and the others cannot be told."
        return f"{what} neither confirmed nor refuted: no module can be told ({counts})."
    if report.verdict == "not applied":
        if report.counts["not applied"] == total:
            return f"{what} not applied: {_modules(total)} {'equals' if total == 1 else 'equal'} the base."
        return f"{what} not applied: {counts}."
    pronoun = "it" if len(report.adapters) == 1 else "they"
    return f"{what} not applied as {pronoun} should be: {counts}."


def _rest(report: VerifyReport) -> str:
    """What is said of all other tensors."""
    num_changed = len(report.unexplained)
    open_ones = [each for each in report.others if each.status != "changed" and not each.expected]
    if num_changed:
        verb = "differs" if num_changed == 1 else "differ"
        return f"{num_changed} other {'tensor' if num_changed == 1 else 'tensors'} {verb} from the base."
    if open_ones:
        noun = "tensor" if len(open_ones) == 1 else "tensors"
        return f"{len(open_ones)} other {noun} could not be compared."
    if not report.num_equal:
        return "There is no other tensor."
    if report.num_equal == 1:
        return "The only other tensor is equal to the base's."
    return f"All {report.num_equal} other tensors are equal to the base's."


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


def by_attention(modules: Sequence[ModuleCheck]) -> list[ModuleCheck]:
    """Modules that need attention first; among the same status, in the order of the model."""
    return sorted(modules, key=lambda module: ORDER.index(module.status))
