"""The words that every output uses for a scan: one or two sentences, and how figures are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intruscope.spectra.records import ChanceMethod, ScanReport
    from intruscope.spectra.totals import Chance, Spread

CHANCE_METHODS: dict[ChanceMethod, str] = {
    "rotated": "the update itself, rotated at random",
    "spectra": "random directions with the same singular values, sampled from the spectra of base and update",
    "modelled-spectra": (
        "random directions with the same singular values, sampled from the leading values and the norms"
    ),
}
"""What a count by chance is, and how it was obtained: one clause each."""


def sentence(report: ScanReport) -> str:
    """Say in a few sentences what a scan found, beside what chance would give, and no more than it measured.

    Counts are of the first side in the ``paper`` scope. A scan does not measure forgetting, so nothing is
    said of it.
    """
    totals = report.totals
    missing = "" if report.complete else " The scan is incomplete: see the findings and the ledger."
    if not totals.num_measured:
        return "Nothing in the paper's scope was compared, so nothing can be said." + missing
    if totals.update_norm == 0.0:
        return "Nothing changed: every update that was compared is zero." + missing
    chance = "" if totals.chance is None else f" {chance_sentence(totals.chance)}"
    undecided = f" {totals.num_undecided} more could not be decided." if totals.num_undecided else ""
    epsilon = f"{report.settings.epsilon:g}"
    if not totals.num_intruders:
        decided = "that could be decided " if totals.num_undecided else ""
        return (
            f"None of the {totals.num_vectors} leading singular vectors is an intruder at epsilon {epsilon}: "
            f"each {decided}has a counterpart in the base."
            + undecided.replace(" more could", " could")
            + chance
            + missing
        )
    are, have = ("is an intruder", "It has") if totals.num_intruders == 1 else ("are intruders", "They have")
    return (
        f"{totals.num_intruders} of {totals.num_vectors} leading singular vectors "
        f"({percent(totals.intruder_fraction)}) {are}, in {totals.matrices_with_intruders} of "
        f"{totals.num_measured} matrices. {have} no counterpart in the base (alignment below {epsilon})."
        + undecided
        + chance
        + missing
    )


def chance_sentence(chance: Chance) -> str:
    """How many intruders chance would give."""
    return (
        f"By chance one would expect {count(chance.expected)} ({count(chance.low)} to {count(chance.high)}): "
        f"{CHANCE_METHODS[chance.method]}."
    )


def count(expected: float) -> str:
    """An expected number of vectors: whole from 10 on, with one decimal below."""
    return f"{expected:.0f}" if expected >= 9.95 else f"{expected:.1f}"


def percent(fraction: float) -> str:
    """A share of one as a percentage with two or three figures."""
    if 0.0 < fraction < 0.0005:
        return "under 0.1%"
    return f"{100 * fraction:.1f}%" if fraction < 0.0995 else f"{100 * fraction:.0f}%"


def update_size(overall: float | None, single: Spread | None) -> str | None:
    """Size of the update beside the base, over all matrices and by matrix; None where the base is zero."""
    if overall is None or single is None:
        return None
    low, high = percent(single.low), percent(single.high)
    return f"{percent(overall)} of ‖W‖" + ("" if low == high else f"; by matrix {low} to {high}")


def top_energy(fraction: float | None, chance: float | None) -> str | None:
    """Share of the update in the base's leading directions beside chance; None where it is not known."""
    if fraction is None or chance is None:
        return None
    return f"{_fine(fraction)} (by chance {_fine(chance)})"


def _fine(fraction: float) -> str:
    """A share that may be tiny, as a percentage with two figures."""
    return f"{100 * fraction:.2g}%" if fraction >= 5e-6 or fraction == 0.0 else "under 0.001%"


def rank_range(ranks: Spread | None) -> str | None:
    """Effective ranks over the matrices; None where there are none."""
    if ranks is None:
        return None
    low, high = f"{ranks.low:.3g}", f"{ranks.high:.3g}"
    return low if low == high else f"median {ranks.median:.3g}; by matrix {low} to {high}"
