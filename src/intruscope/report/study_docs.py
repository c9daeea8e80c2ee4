"""The tables of docs/reproduction.md and docs/merging-study.md, from the scales and the committed results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.report.study_merging import markdown, merge_tables
from intruscope.studies.grid import Checkpoint
from intruscope.studies.recipes import places
from intruscope.studies.scales import MIDI, MINI, SCALES
from intruscope.studies.sizes import kinds, sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.studies.judge import Judged
    from intruscope.studies.records import Record
    from intruscope.studies.scale import Base, Scale
    from intruscope.studies.verdicts import Outcome

MARKS = {
    name: "end" if name == "table" else f"{name} end"
    for name in ("table", "sizes", "rates", "merging", "statements", "merges")
}
"""Where each table begins and ends on the page: HTML comments."""


def tables(judged: Sequence[Judged], larger: Sequence[Judged]) -> dict[str, str]:
    """Every table by its mark, as Markdown.

    Args:
        judged: The claims, with the verdicts of the committed results.
        larger: The same of the scale ``midi``.
    """
    return {"table": _verdicts(judged, larger), "sizes": _sizes(), "rates": _rates()}


def filled(page: str, judged: Sequence[Judged], larger: Sequence[Judged]) -> str:
    """The page with every table as it is now; arguments as those of :func:`tables`."""
    return _filled(page, tables(judged, larger))


def merging_tables(judged: Sequence[Judged], rows: Sequence[Record]) -> dict[str, str]:
    """Every table of docs/merging-study.md by its mark.

    Args:
        judged: The claims about merging, with the verdicts of the committed results.
        rows: The committed rows of the study of merging.
    """
    lines = ["| | claim | verdict | sets of adapters |", "|---|---|---|---|"]
    lines += [f"| {e.claim.id} | {e.claim.text} | **{e.outcome_text}** | {e.runs_text} |" for e in judged]
    return {
        "merging": "\n".join(lines),
        "statements": _statements(judged),
        "merges": markdown(merge_tables(rows)),
    }


def _statements(judged: Sequence[Judged]) -> str:
    """Every statement with its figure; those that no verdict counts are marked."""
    lines = ["| | figure | estimate | interval | claimed | |", "|---|---|---|---|---|---|"]
    for each in judged:
        for statement in each.verdict.statements if each.verdict is not None else ():
            found, scale, unit = statement.estimate, statement.unit.scale, statement.unit.suffix
            figures = ("", statement.why_missing)
            if found is not None:
                low, value, high = (
                    f"{scale * x:.3g}".replace("-", "−") for x in (found.low, found.estimate, found.high)
                )
                figures = (f"{value}{unit}", f"{low} to {high}")
            finding = "for comparison" if statement.is_aside else statement.finding
            claimed = f"above {scale * statement.above:g}"
            lines.append(f"| {' | '.join((each.claim.id, statement.text, *figures, claimed, finding))} |")
    return "\n".join(lines)


def merging_filled(page: str, judged: Sequence[Judged], rows: Sequence[Record]) -> str:
    """The page with every table as it is now; arguments as those of :func:`merging_tables`."""
    return _filled(page, merging_tables(judged, rows))


def _filled(page: str, found: Mapping[str, str]) -> str:
    for mark, table in found.items():
        before, _, rest = page.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- {MARKS[mark]} -->")
        page = f"{before}<!-- {mark} -->\n{table}\n<!-- {MARKS[mark]} -->{after}"
    return page


_SHORT: Mapping[Outcome, str] = {
    "holds": "yes",
    "holds in part": "in part",
    "mixed": "mixed",
    "does not hold": "no",
    "no effect": "no effect",
    "undecided": "?",
    "not testable here": "–",
}


def _verdicts(judged: Sequence[Judged], larger: Sequence[Judged]) -> str:
    tasks = list(
        dict.fromkeys(task for each in judged for task in each.by_task if task not in each.bases.values())
    )
    head = ["", "claim", "where", "verdict", *tasks, "larger base", "runs"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for each, twin in zip(judged, larger, strict=True):
        outcome = each.outcome_text if each.verdict is None else f"**{each.outcome_text}**"
        alone = [_SHORT[each.by_task[task].outcome] if task in each.by_task else "" for task in tasks]
        # A part of a study is no second opinion.
        second = _SHORT[twin.verdict.outcome] if twin.verdict is not None and twin.is_whole else ""
        claim = each.claim
        cells = (claim.id, claim.text, claim.paper_version, outcome, *alone, second, each.runs_text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sizes() -> str:
    lines = ["| scale | bases | tasks | seeds | runs | about |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(_size(scale) for scale in SCALES.values())])


def _size(scale: Scale) -> str:
    found = places(scale)
    counted = ", ".join(f"{count} {name}" for name, count in kinds(found).items() if count)
    minutes = [size.core_minutes for size in sizes(found, scale)]
    if None in minutes:
        about = "GPUs"
    else:
        total = sum(each for each in minutes if each is not None)
        about = f"{total:,.0f} core-minutes" + (f", {total / 120:.1f} h on two cores" if total > 120 else "")
    bases = ", ".join(base.name for base in scale.bases)
    published = {place.work.base for place in found if isinstance(place.work, Checkpoint)}
    more = f"; {', '.join(sorted(published))} scanned" if published else ""
    tasks = ", ".join(task for base in scale.bases for task in base.tasks or base.every_task)
    return f"| {scale.name} | {bases}{more} | {tasks} | {len(scale.seeds)} | {counted} | {about} |"


def _rates() -> str:
    ranks = ("r 1", "r 8", "r 16", "r 64", "full width")
    lines = [
        f"| | {' | '.join(ranks)} | low | high | full | full, lowest to high |",
        "|" + "---|" * (len(ranks) + 5),
    ]
    return "\n".join([*lines, *(_rate(base) for base in (*MINI.bases, *MIDI.bases))])


def _rate(base: Base) -> str:
    rates = base.rates
    lora = " | ".join(f"{rates.lora[rank]:g}" for rank in (1, 8, 16, 64, rates.width))
    full = f"{rates.full_lowest:g}, {rates.full_low:g}, {rates.full_high:g}"
    return f"| {base.name} | {lora} | {rates.low:g} | {rates.high:g} | {rates.full:g} | {full} |"
