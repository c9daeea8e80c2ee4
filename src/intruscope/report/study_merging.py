"""The study of merging as tables: what each way to merge keeps and costs, and the adapters alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
    from collections.abc import Mapping, Sequence

    Row = Mapping[str, Any]

_ABOVE_MAJORITY = "kept above majority"
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
            values = [
                100.0
                * float(
                    np.mean(
                        [
                            kept(row, merge, task, above_majority=above_majority)
                            for task in merge["score"]
                            if row["parts"][task]["learned"]
                        ]
                    )
                )
                for row, merge in zip(rows, merges, strict=True)
                if merge is not None and any(row["parts"][task]["learned"] for task in merge["score"])
            ]
            return _over(values, ".0f", unit="%")

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

    methods = (SUM, MEAN, *RULES, EMR, LINEAR, RANDOM)
    lines = [line(method) for method in methods]
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
