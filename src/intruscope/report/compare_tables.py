"""The terminal's view of a comparison: the fine-tunes, their pairs and their sum, beside their controls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.compare.words import compare_sentence, number, spread
from intruscope.errors import printable
from intruscope.report.terminal import finding_lines
from intruscope.report.words import percent
from intruscope.sweep.words import interval_text, nats

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.compare.records import (
        CompareReport,
        IntruderCount,
        MergeForgetting,
        PairReport,
        Preflight,
    )

_MAX_PAIRS = 20
_PAIR_WIDTH = 26


def compare_summary(report: CompareReport) -> list[RenderableType]:
    """A comparison, in the order in which people ask.

    Args:
        report: The comparison.

    Returns:
        Renderables for ``rich``. Names from files are escaped and never read as markup.
    """
    parts: list[RenderableType] = []
    if report.base is not None:
        parts.append(Text(f"base  {printable(report.base)}"))
    parts.append(Text(compare_sentence(report), style="bold"))
    parts += [_members(report), _pairs(report), _spaces(report), _sum(report)]
    if report.merge.preflight is not None:
        labels = [member.label for member in report.fine_tunes]
        parts.append(_preflight(report.merge.preflight, labels, report.merge.weight))
    if report.merge.forgetting is not None:
        parts.append(_forgetting(report.merge.forgetting))
    return parts + finding_lines(report.findings)


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))


def _numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _members(report: CompareReport) -> Table:
    table = _table("The fine-tunes, and the share of each in an equal-weight merge")
    table.add_column("fine-tune")
    table.add_column("kind")
    _numbers(table, "matrices", "norm of ΔW", "energy", "share")
    for member in report.fine_tunes:
        table.add_row(
            Text(printable(member.label)),
            Text(printable(member.kind)),
            str(member.num_matrices),
            f"{math.sqrt(member.energy):.4g}",
            _percent(member.energy_fraction),
            _percent(member.share),
        )
    return table


def _pairs(report: CompareReport) -> Table:
    has_intruders = any(pair.num_shared_intruders is not None for pair in report.pairs)
    table = _table(
        "Pairs (random directions and shared A: a cosine of 0 and a sign conflict of 0.5, ± the spread)"
        + ("; intruders in both" if has_intruders else "")
    )
    table.add_column("pair", min_width=_PAIR_WIDTH)
    _numbers(table, "cosine", "random", "shared A", "norms", "signs", "random", "shared A")
    if has_intruders:
        _numbers(table, "in both")
    for pair in report.pairs[:_MAX_PAIRS]:
        cells: list[RenderableType] = [
            _pair_name(pair),
            number(pair.cosine),
            spread(pair.cosine_random_spread),
            spread(pair.cosine_shared_a_spread),
            "–" if pair.norm_ratio is None else f"1 : {pair.norm_ratio:.2g}",
            number(pair.sign_conflict),
            spread(pair.sign_conflict_random_spread),
            spread(pair.sign_conflict_shared_a_spread),
        ]
        if has_intruders:
            shared = pair.num_shared_intruders
            cells.append("–" if shared is None else str(shared))
        table.add_row(*cells)
    _more(table, report)
    return table


def _spaces(report: CompareReport) -> Table:
    table = _table("Overlap of their spaces (mean squared cosine of the principal angles, over the matrices)")
    table.add_column("pair", min_width=_PAIR_WIDTH)
    _numbers(table, "column spaces (B)", "random", "row spaces (A)", "random")
    for pair in report.pairs[:_MAX_PAIRS]:
        table.add_row(
            _pair_name(pair),
            number(pair.left_overlap),
            number(pair.left_overlap_random),
            number(pair.right_overlap),
            number(pair.right_overlap_random),
        )
    _more(table, report)
    return table


def _pair_name(pair: PairReport) -> Text:
    return Text(f"{printable(pair.a)}, {printable(pair.b)}", overflow="fold")


def _more(table: Table, report: CompareReport) -> None:
    if len(report.pairs) > _MAX_PAIRS:
        table.add_row(
            Text(f"and {len(report.pairs) - _MAX_PAIRS} more pairs; --json has them all", style="dim")
        )


def _sum(report: CompareReport) -> Table:
    merge = report.merge
    table = _table("The sum of the updates (medians over the matrices that several change)")
    table.add_column("")
    _numbers(table, "found", "random", "shared A", "equal updates")
    count = str(len(report.fine_tunes))
    table.add_row("energy of the sum / energies", number(merge.energy_ratio), "1", "1", count)
    table.add_row(
        "largest singular value / largest of a part",
        number(merge.median_inflation),
        number(merge.median_inflation_random),
        number(merge.median_inflation_shared_a),
        count,
    )
    table.add_row("the same, largest of all matrices", number(merge.max_inflation), "", "", "")
    return table


def _preflight(flight: Preflight, labels: list[str], weight: float) -> Table:
    table = _table(
        f"Intruders among {flight.num_vectors:,} leading left vectors (new: no part had them; energy: % of "
        "the base's)"
    )
    table.add_column("base plus")
    _numbers(table, "intruders", "energy", "new", "new energy", "undecided")

    def add(name: str, count: IntruderCount, style: str = "") -> None:
        table.add_row(
            Text(name),
            str(count.num_intruders),
            _energy(count.energy, flight),
            "" if count.num_new is None else str(count.num_new),
            "" if count.new_energy is None else _energy(count.new_energy, flight),
            str(count.num_undecided),
            style=style,
        )

    for label, count in zip(labels, flight.parts, strict=True):
        add(printable(label), count)
    add(f"merge, {weight:.3g} of each", flight.merge, "bold")
    table.add_section()
    for label, count in zip(labels, flight.random_parts, strict=True):
        add(f"{printable(label)} in random directions", count, "dim")
    add("merge of these", flight.random_merge, "dim")
    add("sum at the norm of one part", flight.equal_norm, "dim")
    return table


def _forgetting(found: MergeForgetting) -> Table:
    table = _table(
        f"Forgetting on {found.num_sequences:,} sequences ({printable(found.protocol)}), nats per token"
    )
    table.add_column("base plus")
    _numbers(table, "loss", "forgetting", "merge minus this")
    for model in found.models:
        difference = model.merge_difference
        table.add_row(
            Text(printable(model.name)),
            interval_text(model.loss, 3),
            nats(model.forgetting).replace(" nats/token", ""),
            "" if difference is None else nats(difference).replace(" nats/token", ""),
            style="" if model.part else "bold",
        )
    return table


def _energy(value: float, flight: Preflight) -> str:
    return percent(value / flight.base_energy) if flight.base_energy else "–"


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)
