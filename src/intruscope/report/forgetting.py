"""A forgetting measurement as a short table, and as one plain sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.report.words import percent, printable_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.records import ForgettingReport, TaskFigures

_MAX_SOURCES = 8


def forgetting_sentence(report: ForgettingReport) -> str:
    """The result in one sentence."""
    found = report.forgetting
    before, after = report.base_loss.nats_per_token.estimate, report.tuned_loss.nats_per_token.estimate
    what = "pseudo-loss" if report.kind == "masked" else "loss"
    moved = f"{what} on this text went from {before:.3f} to {after:.3f} nats per token, {_signed(found)}"
    if found.low > 0:
        return f"The fine-tune forgot: the {moved}."
    if found.high < 0:
        return f"The fine-tune forgot nothing here: the {moved}, so the tuned model is better on this text."
    return f"This text shows no measurable forgetting: the {moved}."


def _signed(interval: Interval) -> str:
    return (
        f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}, "
        f"{percent(interval.level)} interval)"
    )


def forgetting_summary(report: ForgettingReport) -> list[RenderableType]:
    """What a terminal shows: the sentence, the losses, the tasks and how it was measured, in 80 columns."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("nats/token", "nats/byte", "pseudo-perplexity" if report.kind == "masked" else "perplexity"):
        table.add_column(name, justify="right")
    for name, loss in (("base", report.base_loss), ("tuned", report.tuned_loss)):
        interval = loss.nats_per_token
        table.add_row(
            name,
            f"{interval.estimate:.4f} ({interval.low:.3f} to {interval.high:.3f})",
            f"{loss.nats_per_byte:.4f}",
            f"{loss.perplexity:.2f}",
        )
    parts: list[RenderableType] = [
        Text(forgetting_sentence(report), style="bold"),
        table,
    ]
    if report.tasks:
        parts.append(_task_table(report.tasks))
    parts += [
        Text(f"{finding.severity}[{finding.code}] {printable_text(finding.message)}")
        for finding in report.findings
    ]
    if report.fast_error is not None:
        parts.append(
            Text(
                "The fast protocol's forgetting minus the exact one's, on "
                f"{report.num_checked} of the {report.num_sequences} sequences: "
                f"{_signed(report.fast_error)}.",
                style="dim",
            )
        )
    parts.append(Text(_measured_how(report), style="dim"))
    return parts


def _task_table(tasks: tuple[TaskFigures, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("task")
    for name in ("base", "tuned", "change"):
        table.add_column(name, justify="right")
    for task in tasks:
        change = ""
        if task.difference is not None:
            change = (
                f"{task.difference.estimate:+.3f} ({task.difference.low:+.3f} to {task.difference.high:+.3f})"
            )
            change += f", p {task.mcnemar_p:.2g}" if task.mcnemar_p is not None else ""
        table.add_row(
            Text(f"{printable(task.name.rpartition('/')[2])} ({task.metric}, {task.num_examples})"),
            "" if task.base is None else f"{task.base.estimate:.3f}",
            f"{task.tuned.estimate:.3f} ({task.tuned.low:.3f} to {task.tuned.high:.3f})",
            change,
        )
    return table


def _measured_how(report: ForgettingReport) -> str:
    settings = report.settings
    stride = "" if settings.stride is None else f", stride {settings.stride}"
    lines = [
        f"{report.num_tokens:,} tokens in {report.num_sequences:,} sequences ({settings.unit}), "
        f"{settings.protocol}, context {settings.context}{stride}, {settings.dtype} on {settings.device}",
    ]
    if report.num_left_out:
        lines.append(
            f"{report.num_left_out:,} sequences were left out (nothing to score, or beyond --max-sequences)"
        )
    shown = report.texts[:_MAX_SOURCES]
    lines += [f"text  {printable(source.name)}  sha256 {source.sha256[:16]}…" for source in shown]
    if len(report.texts) > len(shown):
        lines.append(
            f"and {len(report.texts) - len(shown)} more files; sha256 of all {report.text_sha256[:16]}…"
        )
    return "\n".join(lines)
