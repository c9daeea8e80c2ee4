"""Remarks of a verification: what its figures together mean."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from intruscope.errors import printable
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from intruscope.verify.records import VerifyReport

_MAX_NAMES = 3


def report_findings(report: VerifyReport, given: Iterable[Finding]) -> tuple[Finding, ...]:
    """Remarks on a report.

    Args:
        report: Everything but its findings.
        given: Findings of the files themselves.
    """
    found = [
        *_equals_base(report),
        *_causes(report),
        *_other_base(report),
        *_bases(report),
        *_changed(report),
        *_unjudged(report),
    ]
    return (*found, *given)


def _equals_base(report: VerifyReport) -> list[Finding]:
    if not report.equals_base:
        return []
    message = "the merged model holds the same numbers as the base in all tensors: nothing was merged"
    if report.verdict == "open":
        message = "the merged model holds the same numbers as the base in all tensors"
    return [Finding(code="equals-base", severity="warning", message=message)]


def _causes(report: VerifyReport) -> list[Finding]:
    if report.equals_base:
        return []
    counts = Counter(m.cause for m in report.modules if m.cause is not None and m.status != "not applied")
    return [
        Finding(code="cause", severity="warning", message=f"{cause} ({_modules(count)})")
        for cause, count in counts.most_common(_MAX_NAMES)
    ]


def _other_base(report: VerifyReport) -> list[Finding]:
    num_changed = len(report.unexplained)
    total = num_changed + report.num_equal
    unlike = report.counts["other change"]
    if num_changed < 2 or 2 * num_changed <= total or not unlike:
        return []
    message = (
        f"{num_changed} of the {total} tensors that no adapter changes differ from the base: the merged "
        "model was probably made from another base, or trained further"
    )
    return [Finding(code="unlike-base", severity="warning", message=message)]


def _bases(report: VerifyReport) -> list[Finding]:
    if len(report.bases) != 2:
        return []
    best, other = report.bases
    alike = (best.num_applied, best.num_equal) == (other.num_applied, other.num_equal)
    if alike and best.num_applied == best.num_modules:
        message = f"both bases fit: {printable(best.name)} and {printable(other.name)}"
        return [Finding(code="both-bases", severity="info", message=message)]
    fits = f"{best.num_applied} of {best.num_modules} modules agree"
    against = f"with {printable(other.name)}, {other.num_applied} do"
    if not best.num_applied:
        message = (
            f"neither base fits: no module agrees with {printable(best.name)} or {printable(other.name)}"
        )
        return [Finding(code="no-base", severity="warning", message=message)]
    message = f"the merge was made on {printable(best.name)}: {fits}; {against}"
    return [Finding(code="base", severity="info", message=message)]


def _changed(report: VerifyReport) -> list[Finding]:
    if not report.unexplained:
        return []
    count = len(report.unexplained)
    what = "1 tensor differs" if count == 1 else f"{count} tensors differ"
    names = _names(each.name for each in report.unexplained)
    message = f"{what} from the base without an adapter that explains it: {names}"
    return [Finding(code="other-changes", severity="warning", message=message)]


def _unjudged(report: VerifyReport) -> list[Finding]:
    found = []
    for status, where in (("new", "the merged model"), ("dropped", "the base")):
        names = [each.name for each in report.others if each.status == status and not each.expected]
        if names:
            message = f"only {where} has these, and nothing in the files says why: {_names(names)}"
            found.append(Finding(code=f"{status}-tensor", severity="warning", message=message))
    resized = [each for each in report.others if each.status == "resized"]
    for each in resized:
        message = f"{printable(each.name)}: {each.reason}; the further words cannot be judged"
        found.append(Finding(code="resized", severity="warning", message=message))
    return found


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(map(printable, listed[:_MAX_NAMES]))
    return shown if len(listed) <= _MAX_NAMES else f"{shown} and {len(listed) - _MAX_NAMES} more"


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"
