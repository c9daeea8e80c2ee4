"""The tables of docs/reproduction.md, from the scales as they are and the results that are committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.studies.grid import Checkpoint
from intruscope.studies.recipes import places
from intruscope.studies.scales import MIDI, MINI, SCALES
from intruscope.studies.sizes import kinds, sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.studies.judge import Judged
    from intruscope.studies.scales import Base, Scale

MARKS = {"table": "end", "sizes": "sizes end", "rates": "rates end"}
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
    for mark, table in tables(judged, larger).items():
        before, _, rest = page.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(f"<!-- {MARKS[mark]} -->")
        page = f"{before}<!-- {mark} -->\n{table}\n<!-- {MARKS[mark]} -->{after}"
    return page


def _verdicts(judged: Sequence[Judged], larger: Sequence[Judged]) -> str:
    lines = ["| | claim | where | verdict | runs | seeds | larger base |", "|---|---|---|---|---|---|---|"]
    for each, twin in zip(judged, larger, strict=True):
        outcome = each.outcome_text if each.verdict is None else f"**{each.outcome_text}**"
        # A part of a study is no second opinion.
        second = twin.outcome_text if twin.verdict is not None and twin.is_whole else ""
        claim = each.claim
        seeds = str(len(each.seeds))
        cells = (claim.id, claim.text, claim.paper_version, outcome, each.runs_text, seeds, second)
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
    tasks = ", ".join(task for base in scale.bases for task in base.tasks)
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
