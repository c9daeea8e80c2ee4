"""The page and the table of a measurement of facts: the report's figures, and text that stays text."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import find_browser, look
from rich.console import Console

from intruscope.knowledge.facts import Fact
from intruscope.knowledge.figures import answer_figures, figures_of, reliability
from intruscope.knowledge.records import FactReport, KnowledgeReport, PromptRecord
from intruscope.knowledge.settings import KnowledgeSettings
from intruscope.knowledge.words import knowledge_sentence
from intruscope.report.knowledge import knowledge_summary
from intruscope.report.knowledge_page import knowledge_data, write_knowledge_html
from intruscope.weights.matrices import Finding

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202e\x07"
ESCAPED = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\\u202e\\x07"
RIGHT = {"HighlyKnown": 1.0, "MaybeKnown": 0.5, "WeaklyKnown": 0.0, "Unknown": 0.0}
# Category in the base, in the tuned model and in the base under other prompts; whether trained; how many.
MOVES = [
    ("HighlyKnown", "Unknown", "HighlyKnown", False, 3),
    ("HighlyKnown", "MaybeKnown", "MaybeKnown", False, 4),
    ("MaybeKnown", "HighlyKnown", "MaybeKnown", False, 2),
    ("HighlyKnown", "HighlyKnown", "HighlyKnown", False, 20),
    ("Unknown", "HighlyKnown", "WeaklyKnown", True, 5),
]


@pytest.fixture(scope="module")
def report():
    items = [
        FactReport(
            question=f"Q{10 * place + number}{HOSTILE if not number else ''}", answers=("a1",),
            trained=trained,
            base=base, tuned=tuned, base_other_prompts=other, base_right=RIGHT[base],
            tuned_right=RIGHT[tuned], base_answer="a1", tuned_answer=HOSTILE,
        )
        for place, (base, tuned, other, trained, count) in enumerate(MOVES)
        for number in range(count)
    ]  # fmt: skip
    facts = [Fact(question=item.question, answers=item.answers, trained=item.trained) for item in items]
    trained = [item for item in items if item.trained]
    answers = answer_figures(facts, [["a1", HOSTILE]] * len(facts))
    return KnowledgeReport(
        base_model="base", tuned_model=HOSTILE, settings=KnowledgeSettings(), source=HOSTILE, sha256="0" * 64,
        is_chat=False, prompts=(PromptRecord(template="{question}", num_prompts=2),),
        example=f"Question: x\nAnswer:{HOSTILE}", max_answer_tokens=16, overall=figures_of(items),
        trained=figures_of(trained), untrained=figures_of([item for item in items if not item.trained]),
        reliability=reliability([1.0] * 5), base_reliability=reliability([0.0] * 5),
        expected_answers=answers, base_answers=answers, tuned_answers=answers, items=tuple(items),
        findings=(Finding(code="duplicate-facts", severity="warning", message=HOSTILE),),
        environment={"device": "cpu"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "knowledge.html"
    write_knowledge_html(report, path)
    return path.read_text(encoding="utf-8")


def test_the_page_holds_nothing_that_runs_but_its_own(page):
    assert page.count("<script") == 2
    assert HOSTILE.split("\u202e")[0] not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "unsafe" not in re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1)


def test_the_terminal_shows_the_figures(report):
    console = Console(width=120, record=True, file=io.StringIO())
    for part in knowledge_summary(report):
        console.print(part)
    text = console.export_text()
    assert "\u202e" not in text
    assert "\x07" not in text
    flat = " ".join(text.split())
    assert knowledge_sentence(report) in flat
    assert "29 facts that it was not trained on" in flat
    assert "lost 24.1% (12.2 to 42.1)" in flat  # 7 of 29
    assert "the base itself loses 6.9%" in flat  # half of 4 of 29
    assert "HighlyKnown 20 4 0 3 27" in flat
    assert "Lost most, 7 of 7" in flat
    assert "The 5 trained facts are answered right 100.0% (56.6 to 100.0) of the time (base: 0.0%)." in flat


def test_the_sentence_says_what_the_intervals_say(report):
    assert knowledge_sentence(report).endswith(": the fine-tune lost more than that.")
    one, *_ = report.items
    still = replace(one, tuned=one.base)
    moved = replace(still, base_other_prompts="Unknown")
    for items, end in (
        ([one] * 2 + [still] * 20, "; the two cannot be told apart."),
        ([moved] * 20 + [still] * 20, ", more than the fine-tune lost."),
    ):
        assert knowledge_sentence(replace(report, untrained=None, overall=figures_of(items))).endswith(end)
    json.dumps(knowledge_data(report), allow_nan=False)
    assert "24.1%" in report._repr_html_()
    assert "<script>window" not in report._repr_html_()


ASK = (Path(__file__).parent / "ask_knowledge.js").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_the_page_in_a_browser(page, report, tmp_path, width, dark):
    find_browser()
    seen = look(page, ASK, tmp_path, width=width, dark=dark)
    answer = seen.answer
    assert seen.console == []
    assert (answer["drawn"], answer["hacked"], answer["subtitle"]) == ("yes", "undefined", ESCAPED)
    assert answer["said"] == knowledge_sentence(report)
    assert answer["findings"] == ["duplicate-facts"]
    for group in ("untrained", "trained"):
        assert answer[group] == [n for row in getattr(report, group).transitions for n in row]
    assert answer["all"] == [n for row in report.overall.transitions for n in row]
    assert answer["null"] == [n for row in report.overall.null_transitions for n in row]
    assert len(answer["lost"]) == 7
    assert answer["lost"][0] == [f"Q0{ESCAPED}", "a1", "HighlyKnown", "100%", "Unknown", "0%", "a1", ESCAPED]
    assert [row[5] for row in answer["lost"]] == ["0%"] * 3 + ["50%"] * 4
    assert answer["lostTrained"] == 0
    assert (answer["page"], answer["second"]) == (25, 9)
    assert "1 to 25 of 34" in answer["pager"]
    assert answer["picked"] == [f"Q0{ESCAPED}", "Q1", "Q2"]
    assert answer["pressed"] == 1
    assert answer["searched"] == []
    assert answer["shifts"][1][:3] == ["untrained", "29", "24.1% (12.2 to 42.1)"]
    assert answer["answers"][2][0] == "tuned"
    assert answer["example"].endswith(f"Answer:{ESCAPED}")
    assert answer["overflow"] <= 0
    assert answer["background"] == ("rgb(20, 23, 27)" if dark else "rgb(251, 250, 248)")
