"""A sweep in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable, printable_text
from intruscope.fitting.table import FIXES
from intruscope.sweep.words import direction_sentence, interval_text, series_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from intruscope.sweep.records import Recommendation, SweepReport


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
    return [*_best(report), *(part for each in report.recommendations for part in _advice(each)), models,
            _own(report), _grid(report), *_fits(report)]  # fmt: skip


def _best(report: SweepReport) -> Iterator[Text]:
    if report.fitting is None:
        return
    best = report.fitting.best
    yield Text(f"{best.sentence}\n", style="bold")
    if best.command is not None:
        yield Text(
            f"To write this model:\n  {printable_text(best.command)}\n", no_wrap=True, overflow="ignore"
        )


def _fits(report: SweepReport) -> Iterator[RenderableType]:
    """What the fits took, and what they say about intruders."""
    if report.fitting is None:
        return
    table = Table(title="The fits", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("fix")
    for name in ("weight", "trained numbers", "best step", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in report.fitting.fits:
        table.add_row(
            FIXES[each.fix].title,
            f"{each.weight:g}",
            f"{each.num_trained:,}",
            f"{each.stopped_at} of {report.fitting.steps}",
            f"{each.seconds:.1f}",
        )
    yield table
    yield from (Text(f"{direction_sentence(each)}\n") for each in report.fitting.directions)


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
    has_fits = report.fitting is not None
    table.add_column("strength or weight" if has_fits else "strength", justify="right")
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
        style = "bold" if FIXES[each.cell.control].role == "edit" else ""
        table.add_row(Text(printable(name)), f"{each.cell.setting:g}", forgetting, task, style=style)
    return table
