"""A sweep as data and in the terminal: the schema ``intruscope.sweep/1``, Parquet rows, a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable, printable_text
from intruscope.records.plain import plain
from intruscope.records.tables import write_parquet
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.sweep.records import SCHEMA
from intruscope.sweep.words import interval_text, series_name
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from intruscope.forgetting.intervals import Interval
    from intruscope.records.tables import Cell
    from intruscope.sweep.records import CellReport, ChosenStrength, Recommendation, SweepReport

_FIGURES = (
    "forgetting",
    "forgetting_change",
    "forgetting_share",
    "task",
    "task_change",
    "task_loss_change",
    "forgetting_difference",
    "task_difference",
)
COLUMNS: dict[str, str] = {
    "control": "string",
    "which": "string",
    "strength": "float64",
    "num_matrices": "int64",
    "change_norm": "float64",
    **{f"{name}{end}": "float64" for name in _FIGURES for end in ("", "_low", "_high")},
}
"""Column names in order, with their Arrow types; the column with a figure's plain name is its estimate."""


def sweep_json(report: SweepReport) -> dict[str, Any]:
    """A sweep as plain data.

    Args:
        report: The sweep.

    Returns:
        The schema's object. Each cell holds its place in the grid beside its figures, and ``data`` says which
        part of the data they are of.
    """
    laid_out = plain(report)
    settings = laid_out.pop("settings")
    names = ("base", "tuned")
    return {
        "schema": SCHEMA,
        **{name: laid_out.pop(name) for name in names},
        "unit": "nats/token",
        "settings": settings,
        **laid_out,
        "cells": [_cell(cell) for cell in report.cells],
        "choices": [_choice(choice) for choice in report.choices],
        "recommendations": [_recommendation(each) for each in report.recommendations],
    }


def write_sweep_json(report: SweepReport, path: Path) -> None:
    """Write the schema's object, whole or not at all.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    write_json_file(sweep_json(report), path)


def write_sweep_parquet(report: SweepReport, path: Path) -> None:
    """Write one row per cell; all figures are of all the data.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    write_parquet(COLUMNS, sweep_rows(report), path)


def sweep_rows(report: SweepReport) -> Iterator[tuple[Cell, ...]]:
    """Yield one row per cell in the order of :data:`COLUMNS`."""
    for each in report.cells:
        cell = each.cell
        figures: list[float | None] = []
        for name in _FIGURES:
            value: Interval | None = getattr(each, name)
            figures += [None] * 3 if value is None else [value.estimate, value.low, value.high]
        yield (cell.control, cell.which, cell.strength, cell.num_matrices, cell.change_norm, *figures)


def sweep_summary(report: SweepReport) -> list[RenderableType]:
    """What a terminal shows: the advice, the tuned model's own figures, and the grid with its intervals.

    Args:
        report: The sweep.

    Returns:
        Renderables for ``rich`` that fit 100 columns, apart from commands, which are never wrapped.
    """
    models = Text(
        f"base   {printable(report.base)}\ntuned  {printable(report.tuned)}\n"
        f"{report.num_intruders} intruders in {report.num_matrices} matrices"
    )
    return [*(part for each in report.recommendations for part in _advice(each)), models, _own(report),
            _grid(report)]  # fmt: skip


def _advice(recommendation: Recommendation) -> Iterator[Text]:
    yield Text(f"{recommendation.sentence}\n", style="bold")
    commands = (
        ("To write this model:", recommendation.command),
        ("To shrink the whole update instead:", recommendation.shrink_command),
    )
    for lead, command in commands:
        if command is not None:
            # One line, so that it can be copied.
            yield Text(f"{lead}\n  {printable_text(command)}\n", no_wrap=True, overflow="ignore")


def _own(report: SweepReport) -> Table:
    """The tuned model's forgetting and score on all the data and on each half."""
    is_accuracy = report.metric == "accuracy"
    table = Table(title="The tuned model", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("data")
    task = "accuracy, %" if is_accuracy else "task loss, nats/token"
    for name in ("sequences", "examples", "forgetting, nats/token", task):
        table.add_column(name, justify="right", no_wrap=True)
    parts = [("all", report.text.num_items, report.task.num_items, report.forgetting, report.task_score)]
    parts += [
        (half.data, half.num_sequences, half.num_examples, half.forgetting, half.task_score)
        for half in report.halves
    ]
    for data, sequences, examples, forgetting, score in parts:
        table.add_row(
            data,
            f"{sequences:,}",
            f"{examples:,}",
            interval_text(forgetting, 3, is_signed=True),
            interval_text(score, 1 if is_accuracy else 3, scale=100.0 if is_accuracy else 1.0),
        )
    return table


def _grid(report: SweepReport) -> Table:
    is_accuracy = report.metric == "accuracy"
    confidence = f"{100 * report.settings.confidence:g}%"
    table = Table(
        title=f"Change from the tuned model, on all the data, with paired {confidence} intervals",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1),
    )
    table.add_column("edit or control")
    table.add_column("strength", justify="right")
    has_share = any(each.forgetting_share is not None for each in report.cells)
    table.add_column(
        "forgetting, %" if has_share else "forgetting, nats/token", justify="right", no_wrap=True
    )
    table.add_column(
        "accuracy, points" if is_accuracy else "task loss, nats/token", justify="right", no_wrap=True
    )
    is_several = len(report.settings.which) > 1
    before = None
    for each in report.cells:
        series = (each.cell.control, each.cell.which)
        if before not in (None, series):
            table.add_section()
        name = series_name(*series, is_several=is_several) if series != before else ""
        before = series
        forgetting = (
            interval_text(each.forgetting_share, 1, scale=100.0, is_signed=True)
            if each.forgetting_share is not None
            else interval_text(each.forgetting_change, 3, is_signed=True)
        )
        task = interval_text(
            each.task_change, 1 if is_accuracy else 3, scale=100.0 if is_accuracy else 1.0, is_signed=True
        )
        style = "bold" if INTERVENTIONS[each.cell.control].role == "edit" else ""
        table.add_row(Text(printable(name)), f"{each.cell.strength:g}", forgetting, task, style=style)
    return table


def _cell(report: CellReport) -> dict[str, Any]:
    laid_out = plain(report)
    return {**laid_out.pop("cell"), **laid_out}


def _choice(choice: ChosenStrength) -> dict[str, Any]:
    return {**plain(choice), "report": None if choice.report is None else _cell(choice.report)}


def _recommendation(recommendation: Recommendation) -> dict[str, Any]:
    return {
        **plain(recommendation),
        "report": None if recommendation.report is None else _cell(recommendation.report),
        "matched": [_cell(each) for each in recommendation.matched],
    }
