"""What is known of each fact before and after, and the figures over all of them, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from intruscope.forgetting.intervals import Interval  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.knowledge.settings import KnowledgeSettings  # noqa: TC001 - as above
from intruscope.records import notebook
from intruscope.records.report import Report
from intruscope.weights.matrices import Finding  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.knowledge/1"
Category = Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
"""In the order of the rows and columns of every transition matrix."""
LEVELS: dict[Category, int] = {"HighlyKnown": 2, "MaybeKnown": 1, "WeaklyKnown": 0, "Unknown": 0}
"""A shift is a change of level. WeaklyKnown and Unknown are one: no greedy answer is right in either."""


@dataclass(frozen=True, kw_only=True)
class FactReport:
    """One fact, before and after.

    Attributes:
        question: As it was asked.
        answers: What counts as right.
        trained: Whether the fine-tune was trained on it; None where nobody said.
        base, tuned: Its category in each model.
        base_other_prompts: Its category in the base under the other set of prompts.
        base_right, tuned_right: Share of the prompts whose greedy answer is right.
        base_answer, tuned_answer: The most frequent greedy answer.
    """

    question: str
    answers: tuple[str, ...]
    trained: bool | None
    base: Category
    tuned: Category
    base_other_prompts: Category
    base_right: float
    tuned_right: float
    base_answer: str
    tuned_answer: str

    @property
    def shift(self) -> int:
        """Change of level from base to tuned: negative for a fact that was lost."""
        return LEVELS[self.tuned] - LEVELS[self.base]


@dataclass(frozen=True, kw_only=True)
class KnowledgeFigures:
    """Counts and shifts over some facts.

    Attributes:
        facts: Number of facts.
        base, tuned: Number of facts in each category.
        transitions: Number of facts by category in the base (rows) and in the tuned model (columns).
        positive_shift: Share of the facts that rose a level (to HighlyKnown or MaybeKnown), with Wilson's
            interval.
        negative_shift: Share of those that fell.
        net_shift: Positive minus negative shift, paired, with the interval of Bonett and Price.
        null_shift: What the wording alone moves in one direction: half the share of the facts whose level in
            the base differs between the two sets of prompts.
        null_transitions: Number of facts by category in the base under the prompts (rows) and under the other
            prompts (columns).
        positive_beyond_null, negative_beyond_null: Shift minus null shift, with Newcombe's interval.
    """

    facts: int
    base: dict[str, int]
    tuned: dict[str, int]
    transitions: tuple[tuple[int, ...], ...]
    positive_shift: Interval
    negative_shift: Interval
    net_shift: Interval
    null_shift: Interval
    null_transitions: tuple[tuple[int, ...], ...]
    positive_beyond_null: Interval
    negative_beyond_null: Interval


@dataclass(frozen=True, kw_only=True)
class CommonAnswer:
    """An answer that was given often, in the form in which answers are compared."""

    text: str
    fraction: float


@dataclass(frozen=True, kw_only=True)
class AnswerFigures:
    """How varied the greedy answers to all prompts are.

    Attributes:
        num_answers: Number of answers.
        num_distinct: Number of distinct answers.
        entropy: Entropy of their distribution, in nats.
        top_fraction: Share of the most frequent one.
        refusal_fraction: Share of wrong answers that are empty or say that the model does not know, among
            all.
        trained_answer_fraction: Share of the answers to untrained facts that give the answer of some trained
            fact and are wrong; None where the trained facts are unknown.
        common: The most frequent ones.
    """

    num_answers: int
    num_distinct: int
    entropy: float
    top_fraction: float
    refusal_fraction: float
    trained_answer_fraction: float | None
    common: tuple[CommonAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class PromptRecord:
    """How facts were asked.

    Attributes:
        template: As it was filled in; the examples of a chat are turns of their own.
        num_prompts: How many prompts use it, with other examples each, in each of the two sets.
    """

    template: str
    num_prompts: int


_COLUMNS = {
    "question": "string",
    "answer": "string",
    "trained": "bool",
    "base": "string",
    "tuned": "string",
    "base_other_prompts": "string",
    "base_right": "float64",
    "tuned_right": "float64",
    "base_answer": "string",
    "tuned_answer": "string",
    "shift": "int64",
}


@dataclass(frozen=True, kw_only=True)
class KnowledgeReport(Report):
    """Which facts a fine-tune learned and which it lost.

    Its table has one row per fact. In JSON, the figures over all facts stand at the top level.

    Attributes:
        base_model, tuned_model: Names of the models.
        settings: How facts were asked for.
        source: Where the facts are from.
        sha256: Hash of the facts.
        is_chat: Facts were asked for in the model's chat template.
        prompts: The prompts, those that both models answered.
        example: The first prompt of the first fact, as the model read it.
        max_answer_tokens: Longest answer in tokens.
        overall: Figures over all facts.
        trained, untrained: Figures over the facts that the fine-tune was trained on, and over the others;
            None where nobody said which these are, or there are none.
        reliability: Share of right greedy answers of the tuned model to the trained facts, over all prompts;
            the interval is by fact.
        base_reliability: The same of the base.
        expected_answers: The right answers themselves, as a reference for the two below.
        base_answers, tuned_answers: How varied the answers are.
        items: Each fact.
        findings: What the reader must know about the facts.
        environment: Versions that a figure depends on.
    """

    schema = SCHEMA
    columns = _COLUMNS

    base_model: str
    tuned_model: str
    settings: KnowledgeSettings
    source: str
    sha256: str
    is_chat: bool
    prompts: tuple[PromptRecord, ...]
    example: str
    max_answer_tokens: int
    overall: KnowledgeFigures
    trained: KnowledgeFigures | None
    untrained: KnowledgeFigures | None
    reliability: Interval | None
    base_reliability: Interval | None
    expected_answers: AnswerFigures
    base_answers: AnswerFigures
    tuned_answers: AnswerFigures
    items: tuple[FactReport, ...]
    findings: tuple[Finding, ...]
    environment: dict[str, Any]

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per fact."""
        for fact in self.items:
            yield (
                fact.question, fact.answers[0], fact.trained, fact.base, fact.tuned, fact.base_other_prompts,
                fact.base_right, fact.tuned_right, fact.base_answer, fact.tuned_answer, fact.shift,
            )  # fmt: skip

    @property
    def lost(self) -> tuple[FactReport, ...]:
        """The facts that fell a level, those that fell furthest first."""
        fallen = [fact for fact in self.items if fact.shift < 0]
        return tuple(sorted(fallen, key=lambda fact: fact.tuned_right - fact.base_right))

    @property
    def judged(self) -> KnowledgeFigures:
        """The figures that say what training did to other knowledge: of the untrained facts, or of all."""
        return self.untrained or self.overall

    def notebook(self) -> Sequence[str]:
        """The shifts beside the null shift, the transitions and the facts that were lost."""
        found = self.judged
        negative, null = found.negative_shift, found.null_shift
        shifts = [
            (name, f"{each.estimate:.1%}", f"{each.low:.1%} to {each.high:.1%}")
            for name, each in (
                ("lost", negative),
                ("gained", found.positive_shift),
                ("null: other prompts", null),
            )
        ]
        matrix: dict[tuple[str, str], float] = {
            (before, after): float(count)
            for before, row in zip(CATEGORIES, found.transitions, strict=True)
            for after, count in zip(CATEGORIES, row, strict=True)
        }
        lost = [
            (fact.question, fact.answers[0], f"{fact.base} → {fact.tuned}", fact.tuned_answer)
            for fact in self.lost[:10]
        ]
        which = "untrained facts" if self.untrained is not None else "facts"
        return [
            notebook.line(f"{self.base_model} → {self.tuned_model}", "top"),
            notebook.headline(
                f"{negative.estimate:.1%}",
                f"of {found.facts:,} {which} lost ({negative.low:.1%} to {negative.high:.1%}); other prompts "
                f"alone: {null.estimate:.1%}",
            ),
            notebook.side_by_side(
                notebook.table("Shifts", ("", "share", "95% interval"), shifts),
                notebook.heat_map("Facts, base (rows) to tuned", CATEGORIES, CATEGORIES, matrix),
            ),
            notebook.table("Lost most", ("question", "answer", "category", "tuned answer"), lost),
        ]

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        rest = {name: item for name, item in laid_out.items() if name != "overall"}
        return {"categories": list(CATEGORIES), **laid_out["overall"], **rest}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        names = KnowledgeFigures.__dataclass_fields__
        fields = {name: item for name, item in data.items() if name not in names and name != "categories"}
        return {**fields, "overall": {name: data[name] for name in names}}
