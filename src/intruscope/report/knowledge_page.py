"""The page of a measurement of facts: the transitions, the shifts beside their null, and every fact.

It uses the frame, the style and the policy of the scan's page (see :mod:`intruscope.report.html`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intruscope.knowledge.records import CATEGORIES
from intruscope.knowledge.words import knowledge_sentence, reliability_sentence
from intruscope.report.html import render_page, write_page
from intruscope.report.knowledge import ANSWER_COLUMNS, SHIFT_COLUMNS, answer_rows, shift_rows
from intruscope.report.words import printable_text

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.knowledge.records import KnowledgeReport


def write_knowledge_html(report: KnowledgeReport, path: Path) -> None:
    """Write one page that works from ``file://`` and sends nothing anywhere.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
        ValueError: a record holds NaN or an infinity, which records forbid.
    """
    page = render_page(
        "knowledge.html.j2",
        styles=("page.css", "knowledge.css"),
        scripts=("dom.js", "knowledge.js"),
        data=knowledge_data(report),
        title="Which facts did it lose?",
        subtitle=printable_text(report.tuned_model),
    )
    write_page(page, path)


def knowledge_data(report: KnowledgeReport) -> dict[str, Any]:
    """Everything the page draws, as plain data; text from files is escaped here.

    Args:
        report: The measurement.
    """
    groups = (("all", report.overall), ("untrained", report.untrained), ("trained", report.trained))
    places = {category: place for place, category in enumerate(CATEGORIES)}
    return {
        "sentence": knowledge_sentence(report),
        "reliability": reliability_sentence(report),
        "categories": list(CATEGORIES),
        "groups": [
            {"name": name, "tuned": found.transitions, "null": found.null_transitions}
            for name, found in groups
            if found is not None
        ],
        "judged": "all" if report.untrained is None else "untrained",
        "shiftColumns": list(SHIFT_COLUMNS),
        "shifts": shift_rows(report),
        "answerColumns": list(ANSWER_COLUMNS),
        "answers": [[printable_text(cell) for cell in row] for row in answer_rows(report)],
        # Bare lists: there may be tens of thousands.
        "facts": [
            [
                printable_text(fact.question),
                printable_text(fact.answers[0]),
                fact.trained,
                places[fact.base],
                places[fact.tuned],
                places[fact.base_other_prompts],
                round(fact.base_right, 4),
                round(fact.tuned_right, 4),
                printable_text(fact.base_answer),
                printable_text(fact.tuned_answer),
                fact.shift,
            ]
            for fact in report.items
        ],
        "findings": [
            [finding.severity, printable_text(finding.code), printable_text(finding.message)]
            for finding in report.findings
        ],
        "example": "\n".join(map(printable_text, report.example.split("\n"))),
        "settings": [
            ["base", printable_text(report.base_model)],
            ["facts from", printable_text(report.source)],
            ["asked in", "the model's chat template" if report.is_chat else "plain text"],
            ["longest answer, tokens", str(report.max_answer_tokens)],
            *(
                [name.replace("_", " "), printable_text(str(value))]
                for name, value in asdict(report.settings).items()
                if value is not None
            ),
            *(
                [printable_text(str(name)), printable_text(str(value))]
                for name, value in report.environment.items()
            ),
        ],
    }
