"""A forgetting measurement as a short table, and as one plain sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.forgetting.gates import LEVEL
from intruscope.forgetting.records import FleetForgettingReport
from intruscope.report.where import where_summary
from intruscope.report.words import percent, printable_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.records import ForgettingReport, LossFigures, SkillFigures, TaskFigures

_MAX_SOURCES = 8


def forgetting_sentence(report: ForgettingReport) -> str:
    """The result on the text in one sentence; empty without a text."""
    found, before, after = report.forgetting, report.base_loss, report.tuned_loss
    if found is None or before is None or after is None:
        return ""
    what = "pseudo-loss" if report.kind == "masked" else "loss"
    moved = (
        f"{what} on this text went from {before.nats_per_token.estimate:.3f} to "
        f"{after.nats_per_token.estimate:.3f} nats per token, {_signed(found)}"
    )
    gamma = report.settings.gamma
    who = "The fine-tune" if gamma is None else f"With guidance at gamma {gamma:g}, the model"
    if found.low > 0:
        return f"{who} forgot: the {moved}."
    if found.high < 0:
        better = f"the {report.measured} model is better"
        return f"{who} forgot nothing here: the {moved}, so {better} on this text."
    return f"This text shows no measurable forgetting: the {moved}."


def skills_sentence(report: ForgettingReport) -> str:
    """What became of the skills in one sentence; empty without skills."""
    if report.skills is None:
        return ""
    figures = report.skills.figures
    certain = [each for each in figures if each.p_adjusted < LEVEL]
    lost = [each.label for each in certain if each.loss.estimate > 0]
    gained = [each.label for each in certain if each.loss.estimate < 0]
    parts = [
        f"the tuned model is {how} on {', '.join(map(printable, names))}"
        for how, names in (("worse", lost), ("better", gained))
        if names
    ]
    num = f"{report.skills.num_tests} comparisons" if report.skills.num_tests > 1 else "one comparison"
    if not parts:
        return f"Skills: no change is certain (adjusted p of all at least {LEVEL:g}, {num})."
    return f"Skills: {'; '.join(parts)} (adjusted p below {LEVEL:g}, {num})."


def _signed(interval: Interval) -> str:
    return (
        f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}, "
        f"{percent(interval.level)} interval)"
    )


def forgetting_summary(report: ForgettingReport | FleetForgettingReport) -> list[RenderableType]:
    """What a terminal shows: sentences, losses, tasks, skills and how they were measured, in 80 columns."""
    if isinstance(report, FleetForgettingReport):
        return _fleet_summary(report)
    sentences = [text for text in (forgetting_sentence(report), skills_sentence(report)) if text]
    parts: list[RenderableType] = [Text(text, style="bold") for text in sentences]
    if report.base_loss is not None and report.tuned_loss is not None:
        parts.append(_loss_table(report, report.base_loss, report.tuned_loss))
    if report.tasks:
        parts.append(_task_table(report.tasks, report.measured))
    if report.skills is not None:
        parts.append(_skill_table([("", report.skills.figures)]))
    parts += _finding_lines(report)
    if report.where is not None:
        parts += where_summary(report.where)
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


def _fleet_summary(report: FleetForgettingReport) -> list[RenderableType]:
    """One table for the text and one for the skills, with a row per fine-tune, then how it was measured."""
    members = list(zip(report.labels, report.reports, strict=True))
    parts: list[RenderableType] = []
    for label, member in members:
        parts += [
            Text(f"{printable(label)}: {text}")
            for text in (forgetting_sentence(member), skills_sentence(member))
            if text
        ]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("fine-tune")
    for name in ("nats/token", "forgetting"):
        table.add_column(name, justify="right")
    base = report.reports[0].base_loss
    if base is not None:
        table.add_row("base", f"{base.nats_per_token.estimate:.4f}", "")
        for label, member in members:
            assert member.tuned_loss is not None and member.forgetting is not None
            loss = f"{member.tuned_loss.nats_per_token.estimate:.4f}"
            table.add_row(Text(printable(label)), loss, _change(member.forgetting))
        parts.append(table)
    for label, member in members:
        if member.tasks:
            parts += [Text(f"Tasks of {printable(label)}"), _task_table(member.tasks, member.measured)]
    skills = [(label, member.skills.figures) for label, member in members if member.skills is not None]
    if skills:
        parts.append(_skill_table(skills))
    for _, member in members:
        parts += _finding_lines(member)
    parts.append(Text(_measured_how(report.reports[0]), style="dim"))
    return parts


def _finding_lines(report: ForgettingReport) -> list[RenderableType]:
    return [
        Text(f"{finding.severity}[{finding.code}] {printable_text(finding.message)}")
        for finding in report.findings
    ]


def _loss_table(report: ForgettingReport, base: LossFigures, tuned: LossFigures) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    perplexity = "pseudo-perplexity" if report.kind == "masked" else "perplexity"
    for name in ("nats/token", "nats/byte", perplexity):
        table.add_column(name, justify="right")
    for name, loss in (("base", base), (report.measured, tuned)):
        interval = loss.nats_per_token
        table.add_row(
            name,
            f"{interval.estimate:.4f} ({interval.low:.3f} to {interval.high:.3f})",
            f"{loss.nats_per_byte:.4f}",
            f"{loss.perplexity:.2f}",
        )
    return table


def _skill_table(models: Sequence[tuple[str, Sequence[SkillFigures]]]) -> Table:
    """A row per skill, and per fine-tune where there are several."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("skill", overflow="fold")
    if len(models) > 1:
        table.add_column("fine-tune", overflow="fold")
    for name in ("items", "base", "tuned", "change", "lost", "won", "adj. p"):
        table.add_column(name, justify="right")
    for rows in zip(*(figures for _, figures in models), strict=True):
        for (label, _), each in zip(models, rows, strict=True):
            table.add_row(
                Text(printable_text(each.label) + ("" if each.higher_is_better else " ↓")),
                *([Text(printable(label))] if len(models) > 1 else []),
                str(each.num_items),
                f"{each.base.estimate:.3f}",
                f"{each.tuned.estimate:.3f}",
                _change(each.difference),
                str(each.num_lost),
                str(each.num_won),
                f"{each.p_adjusted:.2g}",
            )
    return table


def _change(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _task_table(tasks: tuple[TaskFigures, ...], after: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("task")
    for name in ("base", after, "change"):
        table.add_column(name, justify="right")
    for task in tasks:
        change = "" if task.difference is None else _change(task.difference)
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
    where = f"{settings.dtype} on {settings.device}"
    lines = []
    if report.text_sha256 is not None:
        stride = "" if settings.stride is None else f", stride {settings.stride}"
        lines.append(
            f"{report.num_tokens:,} tokens in {report.num_sequences:,} sequences ({settings.unit}), "
            f"{settings.protocol}, context {settings.context}{stride}, {where}"
        )
        if report.num_left_out:
            lines.append(
                f"{report.num_left_out:,} sequences were left out (nothing to score, or beyond "
                "--max-sequences)"
            )
        shown = report.texts[:_MAX_SOURCES]
        lines += [f"text  {printable(source.name)}  sha256 {source.sha256[:16]}…" for source in shown]
        if len(report.texts) > len(shown):
            lines.append(
                f"and {len(report.texts) - len(shown)} more files; sha256 of all {report.text_sha256[:16]}…"
            )
    if report.skills is not None:
        template = "with the chat template" if report.skills.chat_template else "without a chat template"
        shots = sorted({each.num_fewshot for each in report.skills.figures})
        lines.append(
            f"skills by lm-evaluation-harness {report.environment.get('lm-eval', '')}, {template}, "
            f"{', '.join(map(str, shots))} examples in the prompt, {where}; p adjusted by Holm's method for "
            f"{report.skills.num_tests}"
        )
    return "\n".join(lines)
