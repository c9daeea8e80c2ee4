"""Tasks: what a fine-tune was for, as examples with a right answer.

There are three kinds: classification of one text or a pair, multiple choice, and held-out text. They are read
from csv, tsv, json, jsonl, parquet, or a dataset on the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.forgetting.texts import HUB_PREFIX, TABLES, Corpus, read_hub_table, read_table, read_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

_TEXT_FIELDS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
    ("claim",),
)
_LABEL_FIELDS = ("label", "gold_label", "labels")
# How transformers names classes that have no name.
_NO_NAME = re.compile(r"LABEL_\d+")
# Instructions that list their answers in the last line, as in the LLM-Adapters collection.
_ANSWER_FORMAT = re.compile(r"Answer format: *([^\n]+)\s*$")


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """Texts, or pairs of texts, each with the name of its label.

    Attributes:
        name: As given.
        texts: The first text, and the second or None.
        labels: One per example, as stored.
        order: Names of the model's classes in order, where the user gave them.
        sha256: Hash of examples and labels.
        classes: The classes of a task known by name, in their usual order: for a new head, and for a model
            that does not name its classes.
    """

    name: str
    texts: tuple[tuple[str, str | None], ...]
    labels: tuple[str, ...]
    order: tuple[str, ...] | None
    sha256: str
    classes: tuple[str, ...] = ()

    def numbers(self, classes: tuple[str, ...]) -> tuple[int, ...]:
        """The class number of each example.

        Labels are the model's class names (ignoring case) or class numbers. Where the model only knows
        ``LABEL_0`` and so on, the order comes from the user, or else from the task.

        Raises:
            MalformedInput: a label that the model does not know.
        """
        names = self.order if self.order is not None else classes
        if self.order is None and len(self.classes) == len(classes) and all(map(_NO_NAME.fullmatch, classes)):
            names = self.classes
        if self.order is not None and len(self.order) != len(classes):
            raise MalformedInput(
                f"--labels names {len(self.order)} classes, but the model has {len(classes)}",
                remedy="give one name per class with --labels",
                file=self.name,
            )
        known = {name.lower(): number for number, name in enumerate(names)}
        known = {str(number): number for number in range(len(classes))} | known
        for label in self.labels:
            if label.lower() not in known:
                seen = ", ".join(sorted({printable(label) for label in self.labels})[:6])
                raise MalformedInput(
                    f"the model does not know the label '{printable(label)}' (of {seen}); its classes are "
                    f"{', '.join(map(printable, names))}",
                    remedy="name the model's classes in order: --labels A,B,C",
                    file=self.name,
                )
        return tuple(known[label.lower()] for label in self.labels)


@dataclass(frozen=True, kw_only=True)
class ChoiceExample:
    """One example of multiple choice.

    Attributes:
        prompts: The text before each choice.
        endings: The text to score, for each choice.
        answer: Index of the right choice.
    """

    prompts: tuple[str, ...]
    endings: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class ChoiceTask:
    """Multiple choice: the model's answer is the ending that it finds most likely as a whole."""

    name: str
    choices: tuple[ChoiceExample, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Held-out text of the task; its score is the loss."""

    name: str
    corpus: Corpus
    sha256: str


Task = ClassificationTask | ChoiceTask | TextTask


def load_task(
    path: str | Path,
    *,
    text_fields: Sequence[str] | None = None,
    label_field: str | None = None,
    labels: Sequence[str] | None = None,
) -> Task:
    """Read a task.

    Tables of texts and labels are classification. Tables of prompt, choices and answer, of WinoGrande, or of
    instructions that end in "Answer format: a/b/c" are multiple choice. Text files are held-out text.

    Args:
        path: A file, or ``hf:org/name[:config][:split]``.
        text_fields: One or two columns of text; the usual names by default.
        label_field: Column of the labels; the usual names by default.
        labels: The model's classes in order, where the model does not name them.

    Raises:
        UsageError: no such file, or no such columns.
        MalformedInput: damaged, empty, or an answer that is not one of the choices.
    """
    name = str(path)
    is_file = Path(name).exists()
    if is_file and Path(name).suffix.lower() not in TABLES:
        corpus = read_texts([name])
        return TextTask(name=name, corpus=corpus, sha256=corpus.sha256)
    if not is_file and not name.startswith(HUB_PREFIX):
        raise UsageError("no such file", remedy="check the path of the task", file=name)
    rows = read_table(Path(name)) if is_file else read_hub_table(name)
    if not rows:
        raise MalformedInput("this task has no examples", remedy="check the file", file=name)
    first = rows[0]
    if text_fields is None and ("choices" in first or "option1" in first or _is_instruction(first)):
        return choice_task(rows, name)
    return classification_task(rows, name, text_fields, label_field, labels)


def classification_task(
    rows: Sequence[dict[str, Any]],
    name: str,
    text_fields: Sequence[str] | None = None,
    label_field: str | None = None,
    labels: Sequence[str] | None = None,
    *,
    classes: tuple[str, ...] = (),
) -> ClassificationTask:
    """The rows of a table as a classification.

    Args:
        rows: At least one.
        name: For messages.
        text_fields: One or two columns of text; the usual names by default.
        label_field: Column of the labels; the usual names by default.
        labels: The model's classes in order, where the model does not name them.
        classes: The task's own classes in order, which labels may refer to by number.

    Raises:
        UsageError: no such columns.
        MalformedInput: a row without text or label, or a label that is not one of the task's classes.
    """
    names = set(rows[0])
    usual = next((fields for fields in _TEXT_FIELDS if names.issuperset(fields)), ())
    fields = tuple(text_fields) if text_fields else usual
    label = label_field or next((f for f in _LABEL_FIELDS if f in names), "")
    missing = [f for f in (*fields, label) if f not in names]
    if not fields or missing or len(fields) > 2:
        shown = ", ".join(map(printable, rows[0]))
        raise UsageError(
            f"cannot tell which columns hold the text and the label (columns: {shown})",
            remedy="name them with --task-fields TEXT[,TEXT],LABEL",
            file=name,
        )
    texts, found = [], []
    for number, row in enumerate(rows, start=1):
        parts = [row.get(field) for field in fields]
        value = row.get(label)
        second = parts[1] if len(parts) > 1 else None
        label_text = "" if value is None else _label_text(value)
        if not isinstance(parts[0], str) or not isinstance(second, (str, type(None))) or not label_text:
            fact = f"example {number} is without text or label"
            raise MalformedInput(fact, remedy="correct the file", file=name)
        texts.append((parts[0], second))
        found.append(_named_label(label_text, classes, number, name))
    return ClassificationTask(
        name=name,
        texts=tuple(texts),
        labels=tuple(found),
        order=tuple(labels) if labels is not None else None,
        sha256=_digest([*texts, *found]),
        classes=classes,
    )


def _named_label(label: str, classes: tuple[str, ...], number: int, name: str) -> str:
    """The name of a label, where the classes are known; it may be stored as a number."""
    if not classes or label in classes:
        return label
    if label.isdecimal() and len(label) < 10 and int(label) < len(classes):
        return classes[int(label)]
    raise MalformedInput(
        f"example {number} has the label '{printable(label)}'; the classes are {', '.join(classes)}",
        remedy="check the file; to use other labels, give the file instead of the task's name",
        file=name,
    )


def _label_text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _is_instruction(row: dict[str, Any]) -> bool:
    return isinstance(row.get("instruction"), str) and "answer" in row


def choice_task(rows: Sequence[dict[str, Any]], name: str) -> ChoiceTask:
    """The rows of a table as multiple choice, in any form that :func:`load_task` reads.

    Raises:
        MalformedInput: a row of another form, or an answer that is not one of its choices.
    """
    choices = []
    for number, row in enumerate(rows, start=1):
        try:
            choices.append(_choice(row))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise MalformedInput(
                f"example {number} is not multiple choice ({printable(error)})",
                remedy="write {prompt, choices: [...], answer: index} per row",
                file=name,
            ) from None
    digest = _digest([[choice.prompts, choice.endings, choice.answer] for choice in choices])
    return ChoiceTask(name=name, choices=tuple(choices), sha256=digest)


def _choice(row: dict[str, Any]) -> ChoiceExample:
    """One example in any of the three forms."""
    if "option1" in row:  # WinoGrande: the same ending after the sentence with each option filled in
        before, gap, after = row["sentence"].partition("_")
        if not gap:
            raise ValueError("no gap _ in the sentence")
        options = (row["option1"], row["option2"])
        return ChoiceExample(
            prompts=tuple(before + option for option in options),
            endings=(after, after),
            answer=_index(int(row["answer"]) - 1, 2),
        )
    if "choices" in row:
        choices = row["choices"]
        texts = choices["text"] if isinstance(choices, dict) else choices
        prompt = row.get("prompt", row.get("question"))
        if not isinstance(prompt, str) or len(texts) < 2:
            raise ValueError("no prompt, or fewer than two choices")
        answer = row.get("answer", row.get("label", row.get("answerKey")))
        number = answer if isinstance(answer, int) else _named(answer, choices, texts)
        endings = tuple(" " + text.strip() for text in texts)
        return ChoiceExample(
            prompts=(prompt.rstrip(),) * len(texts), endings=endings, answer=_index(number, len(texts))
        )
    found = _ANSWER_FORMAT.search(row["instruction"])
    if found is None:
        raise ValueError("the instruction does not end in its answer format")
    names = [part.strip() for part in found.group(1).split("/")]
    return ChoiceExample(
        prompts=(row["instruction"].rstrip(),) * len(names),
        endings=tuple(f" the correct answer is {part}" for part in names),
        answer=names.index(row["answer"].strip()),
    )


def _named(answer: Any, choices: Any, texts: Sequence[str]) -> int:
    """The index of an answer given as a key (A, B ...), a digit or the text itself."""
    keys = list(choices["label"]) if isinstance(choices, dict) else [chr(65 + i) for i in range(len(texts))]
    for names in (list(texts), keys):
        if answer in names:
            return names.index(answer)
    return int(answer)


def _index(number: int, count: int) -> int:
    if not 0 <= number < count:
        raise ValueError(f"answer {number} of {count} choices")
    return number


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()
