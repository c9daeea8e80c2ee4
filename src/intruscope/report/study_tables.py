"""The tables of a study's page: every arm's figures with their nulls, and the interventions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.repair.interventions import INTERVENTIONS
from intruscope.report.words import printable_text
from intruscope.studies.measure import CONTROLS, STRENGTHS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.studies.records import Record

_RECIPES = ("counts", "rates", "alpha", "methods", "data_size")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of the table of arms.

    Attributes:
        name: Of the record.
        title: Above it.
        digits: After the point.
        beside: Another figure of the record that stands below it, and the words before it.
        times: Factor.
    """

    name: str
    title: str
    digits: int
    beside: tuple[str, str] | None = None
    times: float = 1.0


COLUMNS = (
    Column(name="count", title="intruders", digits=1, beside=("null_count", "by chance")),
    Column(name="hosts", title="matrices with one", digits=1, beside=("predicted_hosts", "predicted")),
    Column(name="effective_rank", title="effective rank", digits=1),
    Column(name="update_norm", title="norm of the update", digits=2),
    Column(name="forgetting", title="forgetting", digits=3),
    Column(name="accuracy", title="accuracy, %", digits=1, times=100.0),
    Column(name="held_out_loss", title="held-out loss", digits=3),
)


def arm_tables(rows: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """For each task a line for every arm, over runs that count once.

    Args:
        rows: By recipe.

    Returns:
        ``task`` and ``lines``: the arm's method and its settings, the number of runs, and a cell for each of
        :data:`COLUMNS`: mean, range (empty for one value) and what stands below.
    """
    groups: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for recipe in _RECIPES:
        for row in rows.get(recipe, []):
            if row["status"] == "ok":
                group = groups.setdefault(row["task"], {}).setdefault(_arm_text(row), [])
                if all(other["key"] != row["key"] for other in group):
                    group.append(row)
    return [
        {
            "task": printable_text(task),
            "lines": [
                (printable_text(arm), printable_text(how), len(group), [_cell(group, c) for c in COLUMNS])
                for (arm, how), group in sorted(arms.items(), key=lambda item: _order(item[1][0]))
            ],
        }
        for task, arms in groups.items()
    ]


def _arm_text(row: Record) -> tuple[str, str]:
    settings = row["settings"]
    if settings["kind"] == "checkpoint":
        return f"published {settings['arm']}", str(settings["tuned"])
    options = settings["options"]
    options_text = "".join(f" {name} {options[name]:g}" for name in ("rank", "alpha") if name in options)
    return (
        f"{settings['method']}{options_text}",
        f"rate {settings['rate']:g}, {settings['examples']:,} examples",
    )


def _order(row: Record) -> tuple[Any, ...]:
    """Full fine-tuning first, then LoRA by rank, then the others; each by alpha, rate and examples."""
    settings = row["settings"]
    if settings["kind"] == "checkpoint":
        return (3, settings["arm"])
    method, options = settings["method"], settings["options"]
    place = {"full": 0, "lora": 1}.get(method, 2)
    numbers = (options.get("rank", 0.0), options.get("alpha", 0.0), settings["rate"], settings["examples"])
    return (place, method, *numbers)


def _cell(group: Sequence[Record], column: Column) -> tuple[str, str, str]:
    mean, reach = _mean(group, column.name, column.digits, column.times)
    if column.beside is None:
        return mean, reach, ""
    name, words = column.beside
    beside, _ = _mean(group, name, column.digits, 1.0)
    return mean, reach, f"{words} {beside}"


def _mean(group: Sequence[Record], name: str, digits: int, times: float) -> tuple[str, str]:
    """Mean and range over runs of one figure."""
    values = [times * row[name] for row in group if row.get(name) is not None]
    if not values:
        return "–", ""
    figures = (statistics.fmean(values), min(values), max(values))
    mean, low, high = (f"{x:.{digits}f}".replace("-", "−") for x in figures)
    return mean, "" if low == high else f"{low} to {high}"


def edit_table(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Change of fit and of forgetting by control and strength, as the paper's table 3.

    Args:
        rows: Of the interventions.
    """
    fine = [row for row in rows if row["status"] == "ok"]
    found = []
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in fine):
        own = [row["interventions"] for row in fine if (row["task"], row["arm"]) == (task, arm)]
        for control in CONTROLS:
            cells = [_edit_cell(own, control, f"{strength:g}") for strength in STRENGTHS]
            what = INTERVENTIONS[control].title
            found.append({"task": printable_text(task), "arm": arm, "control": what, "cells": cells})
    return found


def _edit_cell(runs: Sequence[Mapping[str, Any]], control: str, strength: str) -> str:
    """Accuracy in points, of text the held-out loss in nats; then forgetting in % of itself."""
    cells = [run.get(control, {}).get(strength, {}) for run in runs]

    def change_text(name: str, times: float, digits: int, unit: str) -> str | None:
        values = [cell[name] for cell in cells if name in cell]
        return f"{times * statistics.fmean(values):+.{digits}f}{unit}" if values else None

    fit = change_text("accuracy_change", 100.0, 1, "") or change_text("loss_change", 1.0, 3, " nats")
    forgetting = change_text("forgetting_share", 100.0, 1, "")
    return f"{fit or '–'} / {forgetting or '–'}".replace("-", "−")
