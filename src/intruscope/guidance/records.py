"""What guidance wrote, as a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.guidance.settings import GuideSettings  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.records import notebook
from intruscope.records.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.guide/1"
_COLUMNS = {
    "prompt": "string",
    "gamma": "float64",
    "text": "string",
    "num_tokens": "int64",
    "ended": "bool",
}


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What followed one prompt at one gamma.

    Attributes:
        prompt: Index of the prompt.
        gamma: Strength of guidance.
        text: The new text, without special tokens.
        tokens: The new token ids, without the one that ended them.
        ended: The model ended the text itself; otherwise it was cut off at the maximum number of tokens.
    """

    prompt: int
    gamma: float
    text: str
    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, kw_only=True)
class GuideReport(Report):
    """Completions of the same prompts at several strengths of guidance.

    Its table has one row per completion.

    Attributes:
        base, tuned: Names of the models.
        settings: What was generated, and how.
        is_chat: The prompts were put into the model's chat template.
        prompts: As given.
        completions: By prompt, then in the order of the gammas.
        environment: Versions that the text depends on.
    """

    schema = SCHEMA
    columns = _COLUMNS

    base: str
    tuned: str
    settings: GuideSettings
    is_chat: bool
    prompts: tuple[str, ...]
    completions: tuple[Completion, ...]
    environment: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per completion."""
        for each in self.completions:
            yield self.prompts[each.prompt], each.gamma, each.text, len(each.tokens), each.ended

    def of_prompt(self, index: int) -> tuple[Completion, ...]:
        """The completions of one prompt, in the order of the gammas."""
        return tuple(each for each in self.completions if each.prompt == index)

    def notebook(self) -> Sequence[str]:
        """Each prompt with its completions."""
        tables = [
            notebook.table(
                prompt,
                ("gamma", "completion"),
                [(gamma_title(each.gamma), each.text) for each in self.of_prompt(index)],
            )
            for index, prompt in enumerate(self.prompts)
        ]
        return [notebook.line(f"{self.base} → {self.tuned}", "top"), *tables]


def gamma_title(gamma: float) -> str:
    """A gamma for readers, who should not have to remember which end is which."""
    return {0.0: "0 (base)", 1.0: "1 (tuned)"}.get(gamma, f"{gamma:g}")
