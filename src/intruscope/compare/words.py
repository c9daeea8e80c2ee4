"""A comparison in plain words: figures beside their controls, and no verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intruscope.compare.records import CompareReport, PairReport, Preflight


def compare_sentence(report: CompareReport) -> str:
    """What the sum of the updates does, in one or two sentences."""
    merge = report.merge
    count = len(report.fine_tunes)
    if merge.energy_ratio is None:
        return f"The {count} fine-tunes change nothing that could be compared."
    said = (
        f"The sum of the {count} updates has {merge.energy_ratio:.2f} times their energy (orthogonal "
        f"updates: 1, equal ones: {count})"
    )
    if merge.median_inflation is not None and merge.median_inflation_random is not None:
        said += (
            f", and its largest singular values are {merge.median_inflation:.2f} times those of the largest "
            f"part (median; random directions: {merge.median_inflation_random:.2f})"
        )
    return said + "." + (f" {preflight_sentence(merge.preflight, merge.weight)}" if merge.preflight else "")


def preflight_sentence(flight: Preflight, weight: float) -> str:
    """Intruders of the merge that no part had, beside the controls."""
    return (
        f"The merge at weight {weight:.3g} has {flight.merge.num_intruders} intruders, of which "
        f"{flight.merge.num_new} are new: no part had them. Controls: {flight.random_merge.num_new} new with "
        f"random directions, {flight.equal_norm.num_new} new in the sum at the norm of one part."
    )


def number(value: float | None, digits: int = 3) -> str:
    """Rounded, with a true minus sign; a dash for none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0.0 else text.replace("-", "−")


def spread(value: float | None) -> str:
    """A standard deviation as ± with two significant digits; a dash for none."""
    return "–" if value is None else f"±{value:.2g}"


def pair_name(pair: PairReport) -> str:
    """Both labels."""
    return f"{pair.a} · {pair.b}"
