"""Which facts were learned and lost, as a terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.knowledge.records import CATEGORIES
from intruscope.knowledge.words import knowledge_sentence, reliability_sentence, share
from intruscope.report.words import printable_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.knowledge.records import AnswerFigures, KnowledgeFigures, KnowledgeReport

_MAX_LOST = 10


def knowledge_summary(report: KnowledgeReport) -> list[RenderableType]:
    """The sentence, the shifts beside their null, the transitions, the answers, and the facts lost most."""
    parts: list[RenderableType] = [Text(knowledge_sentence(report), style="bold")]
    reliability = reliability_sentence(report)
    if reliability is not None:
        parts.append(Text(reliability))
    parts += [Text(), _shift_table(report), _transition_table(report.judged, report), _answer_table(report)]
    if report.lost:
        parts.append(_lost_table(report))
    parts += [
        Text(f"{finding.severity}[{finding.code}] {printable_text(finding.message)}")
        for finding in report.findings
    ]
    parts.append(Text(_measured_how(report), style="dim"))
    return parts


def shift_rows(report: KnowledgeReport) -> list[tuple[str, ...]]:
    """Each group of facts with its shifts: name, number, lost, gained, null, lost beyond the null."""
    groups = (("all", report.overall), ("untrained", report.untrained), ("trained", report.trained))
    return [
        (
            name,
            f"{found.facts:,}",
            share(found.negative_shift),
            share(found.positive_shift),
            share(found.null_shift),
            share(found.negative_beyond_null),
        )
        for name, found in groups
        if found is not None
    ]


SHIFT_COLUMNS = ("facts", "number", "lost", "gained", "null shift", "lost beyond the null")


def _shift_table(report: KnowledgeReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Shifts (95% intervals by fact)", title_justify="left")
    for place, name in enumerate(SHIFT_COLUMNS):
        table.add_column(name, justify="right" if place else "left")
    for row in shift_rows(report):
        table.add_row(*row)
    return table


def _transition_table(found: KnowledgeFigures, report: KnowledgeReport) -> Table:
    which = "untrained facts" if report.untrained is not None else "facts"
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{which}, from base to tuned".capitalize(), title_justify="left"
    )
    table.add_column("base \\ tuned")
    for name in (*CATEGORIES, "all"):
        table.add_column(name, justify="right")
    for name, row in zip(CATEGORIES, found.transitions, strict=True):
        table.add_row(name, *(str(count) for count in row), str(found.base[name]))
    table.add_row("all", *(str(found.tuned[name]) for name in CATEGORIES), str(found.facts))
    return table


def answer_rows(report: KnowledgeReport) -> list[tuple[str, ...]]:
    """Right answers, the base's and the tuned model's: distinct, entropy, top share and answer, refusals."""
    rows: list[tuple[str, ...]] = []
    columns: tuple[tuple[str, AnswerFigures], ...] = (
        ("right answers", report.expected_answers),
        ("base", report.base_answers),
        ("tuned", report.tuned_answers),
    )
    for name, found in columns:
        top = printable(found.common[0].text) or "(empty)"
        taught = found.trained_answer_fraction
        is_reference = name == "right answers"
        rows.append(
            (
                name,
                f"{found.num_distinct:,} of {found.num_answers:,}",
                f"{found.entropy:.2f}",
                f"{found.top_fraction:.1%} {top}",
                "" if is_reference else f"{found.refusal_fraction:.1%}",
                "" if is_reference or taught is None else f"{taught:.1%}",
            )
        )
    return rows


ANSWER_COLUMNS = (
    "answers", "distinct", "entropy, nats", "most frequent", "refused or empty", "wrong, from a trained fact",
)  # fmt: skip


def _answer_table(report: KnowledgeReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="How varied the answers are", title_justify="left")
    is_known = report.trained is not None
    for place, name in enumerate(ANSWER_COLUMNS if is_known else ANSWER_COLUMNS[:-1]):
        table.add_column(name, justify="right" if place else "left")
    for row in answer_rows(report):
        table.add_row(*(Text(cell) for cell in (row if is_known else row[:-1])))
    return table


def _lost_table(report: KnowledgeReport) -> Table:
    shown = report.lost[:_MAX_LOST]
    title = f"Lost most, {len(shown)} of {len(report.lost)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("question", "answer", "base", "tuned", "tuned answer"):
        table.add_column(name, justify="right" if name in ("base", "tuned") else "left")
    for fact in shown:
        table.add_row(
            Text(printable(fact.question)),
            Text(printable(fact.answers[0])),
            f"{fact.base_right:.0%}",
            f"{fact.tuned_right:.0%}",
            Text(printable(fact.tuned_answer)),
        )
    return table


def _measured_how(report: KnowledgeReport) -> str:
    settings = report.settings
    num = sum(prompt.num_prompts for prompt in report.prompts)
    form = "the model's chat template" if report.is_chat else "plain text"
    sampled = (
        f"{settings.samples} sampled answers per prompt at temperature {settings.temperature:g}"
        if settings.samples
        else "no sampled answers"
    )
    return (
        f"{report.overall.facts:,} facts of {printable(report.source)}, {num} prompts each in {form}, "
        f"{sampled}, "
        f"answers of at most {report.max_answer_tokens} tokens, {settings.dtype} on "
        f"{report.environment['device']}"
    )
