"""How a fact is asked for: few-shot prompts drawn from other facts, or the user's templates.

There are two sets of prompts of equal size. Both models answer the first; the base also answers the second,
which shows how much the category of a fact moves by the wording alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.forgetting.texts import MAX_TEXT_BYTES, TABLES, decode, read_table
from intruscope.knowledge.matching import matches
from intruscope.weights.stored import read_whole_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.knowledge.facts import Fact

QUESTION, EXAMPLES = "{question}", "{examples}"
PLAIN = "{examples}Question: {question}\nAnswer:"
"""The template of a model without a chat template."""
_COLUMN = "prompt"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One way to ask: a template, and a draw of the facts that are shown with their answers.

    Attributes:
        template: Text with ``{question}`` and, for few-shot prompts, ``{examples}``.
        draw: Number of the draw; prompts with the same draw show the same facts.
    """

    template: str
    draw: int


@dataclass(frozen=True, kw_only=True)
class PromptSets:
    """The prompts that both models answer, and as many others for the base alone."""

    measured: tuple[Prompt, ...]
    other: tuple[Prompt, ...]


def few_shot_prompts(num_prompts: int) -> PromptSets:
    """The default: one template, each prompt with a draw of its own."""
    prompts = [Prompt(template=PLAIN, draw=draw) for draw in range(2 * num_prompts)]
    return PromptSets(measured=tuple(prompts[:num_prompts]), other=tuple(prompts[num_prompts:]))


def read_prompts(path: str | Path) -> PromptSets:
    """Read the user's templates: a line each in a text file, or the column ``prompt`` of a table.

    Templates with ``{examples}`` are all used in both sets, with other examples. Without it, those in odd
    places are measured and those in even places are the others.

    Raises:
        UsageError: no such file.
        MalformedInput: a template without ``{question}``, or too few templates for two sets.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such file", remedy="check --prompts", file=path)
    if path.suffix.lower() in TABLES:
        found = [row.get(_COLUMN) for row in read_table(path)]
    else:
        text = decode(read_whole_file(path, max_bytes=MAX_TEXT_BYTES), file=path)
        found = [line.replace("\\n", "\n") for line in text.splitlines() if line.strip()]
    templates = list(dict.fromkeys(each for each in found if isinstance(each, str)))
    bad = next((each for each in found if not _is_template(each)), None)
    if bad is not None:
        raise MalformedInput(
            f"the prompt '{printable(bad)}' does not hold {QUESTION} exactly once, after any {EXAMPLES}",
            remedy=f"write for example: {EXAMPLES}Q: {QUESTION}\\nA:",
            file=path,
        )
    if any(EXAMPLES in each for each in templates):
        pairs = [
            (Prompt(template=each, draw=2 * place), Prompt(template=each, draw=2 * place + 1))
            for place, each in enumerate(templates)
            if EXAMPLES in each
        ]
        if len(pairs) < len(templates):
            raise MalformedInput(
                f"some prompts hold {EXAMPLES} and some do not",
                remedy="use few-shot prompts only, or zero-shot prompts only",
                file=path,
            )
    else:
        prompts = [Prompt(template=each, draw=0) for each in templates]
        pairs = list(zip(prompts[0::2], prompts[1::2], strict=False))
    if not pairs:
        raise MalformedInput(
            f"this holds {len(templates)} prompts; without {EXAMPLES} at least 2 are needed, since the base "
            "is compared with itself under other prompts",
            remedy=f"add another wording, or {EXAMPLES}",
            file=path,
        )
    return PromptSets(measured=tuple(first for first, _ in pairs), other=tuple(second for _, second in pairs))


def _is_template(text: object) -> bool:
    if not isinstance(text, str) or text.count(QUESTION) != 1 or text.count(EXAMPLES) > 1:
        return False
    return text.find(EXAMPLES) < text.find(QUESTION)


class Asker:
    """Makes prompts out of facts.

    Args:
        facts: All facts of the measurement.
        shots: Number of other facts in a few-shot prompt.
        seed: Random seed of the draws.
        tokenizer: In whose chat template facts are asked for; None for plain text.
    """

    def __init__(self, facts: Sequence[Fact], *, shots: int, seed: int, tokenizer: Any = None) -> None:
        self._facts = facts
        self._shots = shots
        self._seed = seed
        self._tokenizer = tokenizer
        self._draws: dict[int, list[int]] = {}

    def examples(self, place: int, prompt: Prompt) -> list[Fact]:
        """The other facts that a prompt shows.

        Never the fact itself, and none with its answer, which would give the answer away; so that where all
        other facts have this answer, the prompt shows none.
        """
        asked = self._facts[place]
        chosen: list[Fact] = []
        for other in self._order(prompt.draw):
            if len(chosen) == self._shots:
                break
            shown = self._facts[other]
            if other != place and not matches(shown.answers[0], asked.answers):
                chosen.append(shown)
        return chosen

    def _order(self, draw: int) -> list[int]:
        """The facts that a draw shows first, second ...

        Which were trained has no say: a base answers once for all its fine-tunes.
        """
        if draw not in self._draws:
            generator = np.random.default_rng([self._seed, draw])
            self._draws[draw] = generator.permutation(len(self._facts)).tolist()
        return self._draws[draw]

    def text(self, place: int, prompt: Prompt) -> str:
        """The prompt of a fact, ready for a tokenizer that adds no more special tokens to a chat."""
        fact = self._facts[place]
        shown = self.examples(place, prompt) if EXAMPLES in prompt.template else []
        if self._tokenizer is None:
            # An example looks like what follows the examples, with its answer.
            before, _, form = prompt.template.rpartition(EXAMPLES)
            space = "" if form[-1].isspace() else " "
            examples = [f"{_asked(form, each)}{space}{each.answers[0]}\n\n" for each in shown]
            return "".join((before, *examples, _asked(form, fact)))
        # In a chat the examples are earlier turns, and the roles take the place of "Question" and "Answer".
        template = QUESTION if prompt.template == PLAIN else prompt.template
        messages = []
        for each in shown:
            messages.append({"role": "user", "content": _asked(template, each)})
            messages.append({"role": "assistant", "content": each.answers[0]})
        messages.append({"role": "user", "content": _asked(template, fact)})
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text


def _asked(template: str, fact: Fact) -> str:
    return template.replace(EXAMPLES, "").replace(QUESTION, fact.question)
