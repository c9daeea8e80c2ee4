"""Facts to ask for: a question, its answer, and other spellings that count as right."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.forgetting.texts import HUB_PREFIX, TABLES, read_hub_table, read_table
from intruscope.forgetting.windows import spread
from intruscope.knowledge.matching import is_usable, words_of
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_QUESTIONS = ("question", "problem", "query")
_ANSWERS = ("answer", "answers", "possible_answers", "obj")
_ALIASES = ("aliases", "answer_aliases")
_TRAINED = "trained"
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0", "")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact.

    Attributes:
        question: As it is asked.
        answers: What counts as right; the first is the one shown in prompts.
        trained: Whether the fine-tune was trained on it; None where nobody said.
    """

    question: str
    answers: tuple[str, ...]
    trained: bool | None = None


@dataclass(frozen=True, kw_only=True)
class FactSet:
    """The facts of a measurement, in order.

    Attributes:
        name: Where they come from.
        facts: At least two, no question twice.
        sha256: Hash of everything in them.
        asked_sha256: The same without the marks of trained facts, on which no answer depends.
        findings: What was wrong with the file and was put right.
    """

    name: str
    facts: tuple[Fact, ...]
    sha256: str
    asked_sha256: str
    findings: tuple[Finding, ...]


def read_facts(
    name: str | Path,
    *,
    trained: str | Path | None = None,
    fields: Sequence[str] = (),
    max_facts: int | None = None,
) -> FactSet:
    """Read facts, and which of them the fine-tune was trained on.

    Args:
        name: A table (.jsonl .json .csv .tsv .parquet), or ``hf:org/name[:config][:split]``. Its columns
            ``question`` and ``answer`` are text; ``aliases`` is a list, or text with ``|`` between aliases; a
            list in ``answer`` is an answer with its aliases. A column ``trained`` marks the facts that the
            fine-tune was trained on.
        trained: The same for the trained facts alone; those that are not in ``name`` are added.
        fields: Names of the columns: question, answer, and aliases.
        max_facts: Maximum number of facts, sampled evenly from the trained and from the others.

    Raises:
        UsageError: no such file or column.
        MalformedInput: a fact without a question or an answer, or fewer than two facts.
    """
    findings: list[Finding] = []
    facts = _read(str(name), fields, findings)
    if trained is not None:  # its facts may be among the others: that is no mistake
        more = [replace(fact, trained=True) for fact in _read(str(trained), fields, findings)]
        facts = _united([*facts, *more])
    if any(fact.trained for fact in facts):
        facts = [replace(fact, trained=bool(fact.trained)) for fact in facts]
    if len(facts) < 2:
        reason = "this holds a single fact, and prompts need others to show"
        raise MalformedInput(reason, remedy="add more facts", file=str(name))
    facts = _limited(facts, max_facts)
    asked = [[fact.question, fact.answers] for fact in facts]
    marks = [fact.trained for fact in facts]
    return FactSet(
        name=str(name) if trained is None else f"{name}, {trained}",
        facts=tuple(facts),
        sha256=hashlib.sha256(json.dumps([asked, marks]).encode()).hexdigest(),
        asked_sha256=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        findings=tuple(findings),
    )


def _read(name: str, fields: Sequence[str], findings: list[Finding]) -> list[Fact]:
    """The facts of one table; questions that it asks twice are united, and reported."""
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            reason = "facts are read from tables, and this file is none"
            raise UsageError(reason, remedy=f"use a file ending in {' '.join(TABLES)}", file=name)
        rows = read_table(path)
    elif name.startswith(HUB_PREFIX):
        rows = read_hub_table(name)
    else:
        remedy = "check the path; a dataset on the hub is written hf:org/name:split"
        raise UsageError("no such file", remedy=remedy, file=name)
    if not rows:
        raise MalformedInput("this holds no facts", remedy="check the file", file=name)
    question, answer, aliases = _columns(rows[0], fields, name)
    facts, num_unusable = [], 0
    for number, row in enumerate(rows, start=1):
        fact, unusable = _fact(row, question, answer, aliases, f"fact {number}", name)
        facts.append(fact)
        num_unusable += unusable
    if num_unusable:
        message = f"{num_unusable} aliases without a letter or digit can match nothing and were left out"
        findings.append(
            Finding(code="empty-alias", severity="warning", message=f"{printable(name)}: {message}")
        )
    united = _united(facts)
    if len(united) < len(facts):
        message = (
            f"{len(facts) - len(united)} of {len(facts)} facts repeat the question of another; they count as "
            "one fact, and each of their answers as right"
        )
        findings.append(
            Finding(code="duplicate-facts", severity="warning", message=f"{printable(name)}: {message}")
        )
    return united


def _columns(row: dict[str, Any], fields: Sequence[str], name: str) -> tuple[str, str, str | None]:
    """The columns of question, answer and aliases."""
    if fields:
        missing = [field for field in fields if field not in row]
        if missing or not 2 <= len(fields) <= 3:
            shown = ", ".join(map(printable, row))
            fact = f"--fact-fields must name two or three columns of this file (columns: {shown})"
            raise UsageError(fact, remedy="write --fact-fields QUESTION,ANSWER[,ALIASES]", file=name)
        return fields[0], fields[1], fields[2] if len(fields) > 2 else None
    question, answer, aliases = (
        next((each for each in usual if each in row), None) for usual in (_QUESTIONS, _ANSWERS, _ALIASES)
    )
    if question is None or answer is None:
        shown = ", ".join(map(printable, row))
        fact = f"cannot tell which columns hold the question and the answer (columns: {shown})"
        raise UsageError(fact, remedy="name them with --fact-fields QUESTION,ANSWER[,ALIASES]", file=name)
    return question, answer, aliases


def _fact(
    row: dict[str, Any], question: str, answer: str, aliases: str | None, place: str, name: str
) -> tuple[Fact, int]:
    """One fact, and how many of its aliases cannot match anything."""
    asked = row.get(question)
    if not isinstance(asked, str) or not asked.strip():
        raise MalformedInput(f"{place} has no question", remedy="correct the file", file=name)
    first = _spellings(row.get(answer), place, name, is_answer=True)
    more = _spellings(row.get(aliases), place, name, is_answer=False) if aliases is not None else []
    usable = [each for each in (*first, *more) if is_usable(each)]
    if not any(map(is_usable, first)):
        raise MalformedInput(
            f"{place} ('{printable(asked.strip())}') has no answer",
            remedy="give it an answer with a letter or digit in it, or remove it",
            file=name,
        )
    if any("\ud800" <= character <= "\udfff" for text in (asked, *usable) for character in text):
        raise MalformedInput(
            f"{place} holds half of a surrogate pair, which is no character",
            remedy="write the file again as UTF-8",
            file=name,
        )
    marked = row.get(_TRAINED)
    trained = None if marked is None else _truth(marked, place, name)
    answers = tuple(dict.fromkeys(each.strip() for each in usable))
    return Fact(question=asked.strip(), answers=answers, trained=trained), len(first) + len(more) - len(
        usable
    )


def _spellings(value: Any, place: str, name: str, *, is_answer: bool) -> list[str]:
    """The spellings in a cell: one, a list, TriviaQA's object, or text that holds several."""
    if isinstance(value, dict):  # TriviaQA: {"value": ..., "aliases": [...]}
        value = [value.get("value"), *(value.get("aliases") or ())]
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list within a csv, as PopQA has
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = [value] if is_answer else value.split("|")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(
        each is None or (isinstance(each, (str, int, float)) and not isinstance(each, bool)) for each in value
    ):
        what = "answer" if is_answer else "list of aliases"
        fact = f"the {what} of {place} is {printable(repr(value))}, which is not text"
        raise MalformedInput(fact, remedy="write text, or a list of texts", file=name)
    return ["" if each is None else str(each) for each in value]


def _truth(value: Any, place: str, name: str) -> bool:
    text = str(value).strip().lower()
    if text not in (*_YES, *_NO):
        fact = f"'{_TRAINED}' of {place} is '{printable(text)}'"
        raise MalformedInput(fact, remedy="write true or false", file=name)
    return text in _YES


def _united(facts: Iterable[Fact]) -> list[Fact]:
    """Facts with the same question as one fact, with all their answers; trained where one of them is."""
    found: dict[object, Fact] = {}
    for fact in facts:
        key = words_of(fact.question) or fact.question
        if key in found:
            before = found[key]
            known = [each for each in (before.trained, fact.trained) if each is not None]
            fact = Fact(
                question=before.question,
                answers=tuple(dict.fromkeys((*before.answers, *fact.answers))),
                trained=any(known) if known else None,
            )
        found[key] = fact
    return list(found.values())


def _limited(facts: list[Fact], max_facts: int | None) -> list[Fact]:
    """At most ``max_facts``, evenly spread; trained and other facts keep their shares."""
    if max_facts is None or len(facts) <= max_facts:
        return facts
    ordered = sorted(range(len(facts)), key=lambda place: bool(facts[place].trained))
    return [facts[place] for place in sorted(ordered[each] for each in spread(len(facts), max_facts))]
