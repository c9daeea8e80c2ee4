"""The words that every output uses: one sentence for a scan, and how figures are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.plots.series import measured

if TYPE_CHECKING:
    from intruscope.spectra.records import ScanReport


def sentence(report: ScanReport) -> str:
    """Say in one or two sentences what the scan found, no more than it measured.

    Counts are of the first side in the paper's scope. Forgetting is not measured by a scan, so nothing
    is promised about it.
    """
    matrices = measured(report)
    missing = "" if report.complete else " The scan is incomplete: see the findings and the ledger."
    if not matrices:
        return "Nothing in the paper's scope was compared, so nothing can be said." + missing
    sides = [matrix.sides[0] for matrix in matrices]
    candidates = sum(len(side.verdicts) for side in sides)
    found = sum(side.num_intruders for side in sides)
    undecided = sum(verdict in ("borderline", "degenerate") for side in sides for verdict in side.verdicts)
    open_cases = f" {undecided} more could not be decided." if undecided else ""
    if all(matrix.update is not None and matrix.update.frobenius_norm == 0.0 for matrix in matrices):
        return "Nothing changed: every update that was compared is zero." + missing
    if not found:
        decided = "that could be decided " if undecided else ""
        return (
            f"None of the {candidates} leading singular vectors is an intruder at epsilon "
            f"{report.settings.epsilon:g}: each {decided}has a counterpart in the base."
            + open_cases.replace(" more could", " could")
            + missing
        )
    touched = sum(side.num_intruders > 0 for side in sides)
    are, have = ("is an intruder", "It has") if found == 1 else ("are intruders", "They have")
    return (
        f"{found} of {candidates} leading singular vectors ({percent(found / candidates)}) {are}, in "
        f"{touched} of {len(matrices)} matrices. {have} no counterpart in the base (alignment below "
        f"{report.settings.epsilon:g})." + open_cases + missing
    )


def percent(fraction: float) -> str:
    """A share of one as a percentage with two or three figures."""
    if 0.0 < fraction < 0.0005:
        return "under 0.1%"
    return f"{100 * fraction:.1f}%" if fraction < 0.0995 else f"{100 * fraction:.0f}%"


def printable_text(text: str) -> str:
    """Escape what does not print, without the cut that names get: sentences may be long."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
