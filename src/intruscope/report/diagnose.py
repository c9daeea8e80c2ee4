"""A diagnosis in the terminal: the answer, a table per part, and what to run next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.report.words import printable_text
from intruscope.sweep.words import interval_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.diagnose.records import DiagnoseReport, Fix
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.sweep.records import Metric

VERDICTS = {
    "forgot": "It forgot",
    "no-forgetting": "No measurable forgetting",
    "unknown": "Forgetting is unknown",
}
"""The verdict in words."""


def diagnose_summary(report: DiagnoseReport) -> list[RenderableType]:
    """What a terminal shows."""
    parts: list[RenderableType] = [Text(f"{VERDICTS[report.verdict]}.", style="bold")]
    parts += [Text(printable_text(text)) for text in report.sentences]
    if report.forgetting is not None:
        parts.append(_forgetting_table(report.forgetting))
    if report.fixes and report.sweep is not None:
        parts.append(_fix_table(report.fixes, report.sweep.metric))
    parts += [
        Text(f"Not measured: {each.part}: {printable_text(each.reason)}.", style="dim")
        for each in report.skipped
    ]
    if report.commands:
        parts.append(Text("\nRun next", style="bold"))
    for each in report.commands:
        parts.append(Text(f"{each.purpose}:", style="dim"))
        parts.append(Text(f"  {printable_text(each.command)}", no_wrap=True))
    return parts


def _forgetting_table(report: ForgettingReport) -> Table:
    """One row for the text, then tasks and skills, all with tuned minus base."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("measured on")
    for name in ("base", "tuned", "change"):
        table.add_column(name, justify="right")
    if report.base_loss is not None and report.tuned_loss is not None and report.forgetting is not None:
        table.add_row(
            "text, nats/token (lower is better)",
            f"{report.base_loss.nats_per_token.estimate:.3f}",
            f"{report.tuned_loss.nats_per_token.estimate:.3f}",
            interval_text(report.forgetting, 3, is_signed=True),
        )
    for task in report.tasks:
        table.add_row(
            Text(f"{printable(task.name.rpartition('/')[2])}, {task.metric}"),
            "" if task.base is None else f"{task.base.estimate:.3f}",
            f"{task.tuned.estimate:.3f}",
            "" if task.difference is None else interval_text(task.difference, 3, is_signed=True),
        )
    for skill in report.skills.figures if report.skills is not None else ():
        table.add_row(
            Text(printable_text(skill.label)),
            f"{skill.base.estimate:.3f}",
            f"{skill.tuned.estimate:.3f}",
            interval_text(skill.difference, 3, is_signed=True) + f", adj. p {skill.p_adjusted:.2g}",
        )
    return table


def _fix_table(fixes: tuple[Fix, ...], metric: Metric) -> Table:
    """The fixes, best first, on the half of the data that did not choose their strengths."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("fix")
    has_fits = any(fix.weight is not None for fix in fixes)
    table.add_column("strength or weight" if has_fits else "strength", justify="right")
    for name in ("forgetting", f"task, {metric}"):
        table.add_column(name, justify="right", no_wrap=True)
    for fix in fixes:
        scale, unit = (100.0, " points") if metric == "accuracy" else (1.0, "")
        task = interval_text(
            fix.task_change, 1 if metric == "accuracy" else 3, scale=scale, unit=unit, is_signed=True
        )
        table.add_row(fix.title, fix.setting, interval_text(fix.forgetting_change, 3, is_signed=True), task)
    return table
