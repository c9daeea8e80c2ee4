"""The study of merging as tables: what each way to merge keeps and costs, and the adapters alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.plots.study_merging import MergedSet
from intruscope.studies.claims_merging import (
    EMR,
    LINEAR,
    MEAN,
    OWN_STARTS,
    RANDOM,
    RULES,
    SUM,
    TITLES,
    UNTUNED,
    at_strength,
    chosen,
    kept,
    sizes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intruscope.studies.claims_merging import Merge

    Row = Mapping[str, Any]

_ABOVE_MAJORITY = "kept above majority"
_METHODS = (SUM, MEAN, *RULES, EMR, LINEAR, RANDOM)
_NEW = ("merged_only", "null_merged_only")
MERGE_COLUMNS = (
    "method",
    "kept",
    _ABOVE_MAJORITY,
    "kept at 1/T",
    f"kept at {UNTUNED:g}",
    "strength",
    "forgetting, nats",
    "norm",
    "inflation",
    "intruders",
    "merged-only",
)
PART_COLUMNS = (
    "task",
    "accuracy, or minus the loss",
    "of the commonest answer, or of the base",
    "learned",
    "forgetting, nats",
    "norm",
    "intruders",
)


@dataclass(frozen=True, kw_only=True)
class MergeTable:
    """The merges of one number of adapters, or the adapters alone.

    Attributes:
        title: Base, arm and number.
        columns: Their heads.
        lines: One for each method or task; means over sets, with their range where there are several.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def merge_tables(rows: Sequence[Row]) -> list[MergeTable]:
    """The tables of the sets of adapters that there are.

    Args:
        rows: Of the study of merging.
    """
    found = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            groups.setdefault((row["task"], row["arm"]), []).append(row)
    for (base, arm), own in groups.items():
        start = "" if arm == OWN_STARTS else ", all adapters from one start"
        about = f"{base}{start}, {len(own)} set{'s' if len(own) > 1 else ''}"
        found.append(_parts_table(f"The adapters alone: {about}", own))
        found += [_merges_table(f"{size} adapters merged: {about}", own, size) for size in sizes(own[0])]
    return found


def merged_sets(rows: Sequence[Row]) -> list[MergedSet]:
    """What pictures show of the sets whose adapters have seeds of their own.

    Args:
        rows: Of the study of merging.
    """
    own = [row for row in rows if (row["arm"], row["status"]) == (OWN_STARTS, "ok")]
    return [
        MergedSet(
            base=row["task"],
            seed=row["seed"],
            kept={size: dict(_kept(row, size)) for size in sizes(row)},
            new=_new(row),
            sums=row["sums"],
        )
        for row in own
    ]


def _kept(row: Row, size: int) -> Iterator[tuple[str, tuple[float, bool]]]:
    """By method the share kept, in percent, and whether it is a control."""
    for method in _METHODS:
        merge = chosen(row, method, size)
        if merge is not None and (share := _share(row, merge)) is not None:
            yield TITLES[method].partition(" (")[0], (share, method in (EMR, LINEAR, RANDOM))


def _new(row: Row) -> dict[str, tuple[float, float]]:
    """Merged-only intruders of sums, and those in random directions."""
    pairs = [each for each in row["sums"] if len(each["tasks"]) == 2]
    counts = {"two adapters, all pairs": tuple(_total(pairs, name) for name in _NEW)} if pairs else {}
    for size in sizes(row):
        for strength, text in ((1.0, "at strength 1"), (1.0 / size, "at 1/T")):
            merge = at_strength(row, SUM, size, strength)
            if merge is not None and "weights" in merge:
                counts[f"{size} adapters {text}"] = tuple(float(merge["weights"][name]) for name in _NEW)
    return {name: (found, null) for name, (found, null) in counts.items()}


def _total(sums: Sequence[Mapping[str, Any]], figure: str) -> float:
    return float(sum(each[figure] for each in sums))


def _share(row: Row, merge: Merge, *, above_majority: bool = False) -> float | None:
    """What a merge keeps, in percent, mean over the tasks that were learned; None where there is none."""
    learned = [task for task in merge["score"] if row["parts"][task]["learned"]]
    shares = [kept(row, merge, task, above_majority=above_majority) for task in learned]
    return 100.0 * float(np.mean(shares)) if shares else None


def _parts_table(title: str, rows: Sequence[Row]) -> MergeTable:
    def line(task: str) -> tuple[str, ...]:
        parts = [row["parts"][task] for row in rows]
        floors = [part["floor"] if part["majority"] is None else part["majority"] for part in parts]
        return (
            task,
            _over([part["score"] for part in parts], ".3f"),
            _over(floors, ".3f"),
            f"{sum(part['learned'] for part in parts)} of {len(parts)}",
            _over([part["forgetting"] for part in parts], ".2f"),
            _over([part["norm"] for part in parts], ".3f"),
            _over([part["intruders"] for part in parts], ".0f"),
        )

    return MergeTable(title=title, columns=PART_COLUMNS, lines=tuple(line(task) for task in rows[0]["parts"]))


def _merges_table(title: str, rows: Sequence[Row], size: int) -> MergeTable:
    def line(method: str) -> tuple[str, ...]:
        best = [chosen(row, method, size) for row in rows]

        def share(merges: Sequence[Any], *, above_majority: bool = False) -> str:
            shares = [
                _share(row, merge, above_majority=above_majority)
                for row, merge in zip(rows, merges, strict=True)
                if merge is not None
            ]
            return _over([value for value in shares if value is not None], ".0f", unit="%")

        def weights(figure: str, digits: str) -> str:
            return _over([m["weights"][figure] for m in best if m is not None and "weights" in m], digits)

        rule = SUM if method == MEAN else method
        return (
            TITLES[method],
            share(best),
            share(best, above_majority=True),
            share([at_strength(row, rule, size, 1.0 / size) for row in rows]),
            share([at_strength(row, rule, size, UNTUNED) for row in rows]) if method != MEAN else "",
            _over([m["strength"] for m in best if m is not None], ".2g"),
            _over([m["forgetting"] for m in best if m is not None and "forgetting" in m], ".2f"),
            weights("norm", ".3f"),
            weights("inflation", ".2f"),
            weights("intruders", ".0f"),
            weights("merged_only", ".0f"),
        )

    lines = [line(method) for method in _METHODS]
    # Text has no commonest answer.
    has_majority = any(part["majority"] is not None for row in rows for part in row["parts"].values())
    shown = [place for place, name in enumerate(MERGE_COLUMNS) if has_majority or name != _ABOVE_MAJORITY]
    return MergeTable(
        title=title,
        columns=tuple(MERGE_COLUMNS[place] for place in shown),
        lines=tuple(tuple(cells[place] for place in shown) for cells in lines),
    )


def _over(values: Sequence[float], digits: str, *, unit: str = "") -> str:
    """The mean over sets, and the range where they differ."""
    if not values:
        return ""
    low, mean, high = (
        f"{round(value, 6) + 0.0:z{digits}}".replace("-", "−")
        for value in (min(values), float(np.mean(values)), max(values))
    )
    return f"{mean}{unit}" if low == high else f"{mean}{unit} ({low} to {high})"


def markdown(tables: Sequence[MergeTable]) -> str:
    """The tables as a page of the documentation shows them."""
    blocks = []
    for table in tables:
        head = [f"| {' | '.join(table.columns)} |", "|" + "---|" * len(table.columns)]
        blocks.append(
            "\n".join([f"**{table.title}**", "", *head, *(f"| {' | '.join(line)} |" for line in table.lines)])
        )
    return "\n\n".join(blocks)
