"""Three disjoint parts of the data: one to fit on, one to choose on, one to report.

Nothing is fitted on what is reported. Where the user gives one task and one text, a third of each is set
aside for fitting, by document where there are several. Where the user gives other data to fit on, it is
refused if it holds anything that is measured.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from intruscope.errors import UsageError
from intruscope.forgetting.disjoint import MAX_SHARED_LINES, telling_lines
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, Task, TextTask
from intruscope.forgetting.texts import Corpus, Document, TextSource

if TYPE_CHECKING:
    from collections.abc import Sequence

_FEWEST_DOCUMENTS = 6
"""With fewer documents, each is cut in two instead of being given to one side."""
_FEWEST_ITEMS = 4


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The data of a sweep with fits.

    Attributes:
        fit_task: Examples to fit on.
        fit_text: Text to fit on.
        task: Examples to choose and report on.
        text: Text to choose and report on.
    """

    fit_task: Task
    fit_text: Corpus
    task: Task
    text: Corpus

    @property
    def digest(self) -> str:
        """Hash of what is fitted on."""
        return hashlib.sha256(f"{self.fit_task.sha256} {self.fit_text.sha256}".encode()).hexdigest()


def parts_of_data(
    task: Task, text: Corpus, *, fit_task: Task | None = None, fit_text: Corpus | None = None, seed: int = 0
) -> Parts:
    """Set data aside for fitting, or check the data that was given for it.

    Args:
        task: The task.
        text: The text.
        fit_task: Other examples of the task, to fit on; a third of ``task`` by default.
        fit_text: Other text; a third of ``text`` by default.
        seed: Random seed of the split.

    Raises:
        UsageError: too little data to split, or data to fit on that is also measured.
    """
    if fit_task is None:
        fit_task, task = split_task(task, seed=seed)
    else:
        _check_disjoint(_task_items(fit_task), _task_items(task), fit_task, flag="--fit-task")
    if fit_text is None:
        fit_text, text = split_corpus(text, seed=seed)
    else:
        _check_disjoint(_text_items(fit_text), _text_items(text), fit_text, flag="--fit-text")
    return Parts(fit_task=fit_task, fit_text=fit_text, task=task, text=text)


def split_task(task: Task, *, seed: int) -> tuple[Task, Task]:
    """A third of a task's examples, and the others; equal examples stay together.

    Args:
        task: The task.
        seed: Random seed.

    Raises:
        UsageError: too few examples.
    """
    if isinstance(task, TextTask):
        first, second = split_corpus(task.corpus, seed=seed)
        return (
            replace(task, corpus=first, sha256=first.sha256),
            replace(task, corpus=second, sha256=second.sha256),
        )
    keys = _task_items(task)
    fitted = _third(keys, seed)
    mine = [index for index, key in enumerate(keys) if key in fitted]
    others = [index for index, key in enumerate(keys) if key not in fitted]
    if min(len(mine), len(others)) < _FEWEST_ITEMS:
        raise UsageError(
            f"the task has {len(keys)} examples, too few to set a third of them aside for fitting",
            remedy="give more examples, or others to fit on with --fit-task",
            file=task.name,
        )
    return some_examples(task, mine), some_examples(task, others)


def some_examples(task: ClassificationTask | ChoiceTask, chosen: Sequence[int]) -> Task:
    """A task with some of its examples.

    Args:
        task: The task.
        chosen: Indices of examples.
    """
    if isinstance(task, ChoiceTask):
        found: ClassificationTask | ChoiceTask = replace(
            task, choices=tuple(task.choices[index] for index in chosen)
        )
    else:
        found = replace(
            task,
            texts=tuple(task.texts[index] for index in chosen),
            labels=tuple(task.labels[index] for index in chosen),
        )
    return replace(found, sha256=_hash(_task_items(found)))


def split_corpus(corpus: Corpus, *, seed: int) -> tuple[Corpus, Corpus]:
    """A third of a text, and the rest: by document, or else the beginning of each document and its end.

    Args:
        corpus: The text.
        seed: Random seed of the choice of documents.

    Raises:
        UsageError: too little text.
    """
    if len(corpus.documents) >= _FEWEST_DOCUMENTS:
        keys = [_hash(document.text) for document in corpus.documents]
        fitted = _third(keys, seed)
        sides = [
            [
                document
                for document, key in zip(corpus.documents, keys, strict=True)
                if (key in fitted) is side
            ]
            for side in (True, False)
        ]
    else:
        cuts = [_cut(document) for document in corpus.documents]
        sides = [[pair[side] for pair in cuts if pair[side].text.strip()] for side in (0, 1)]
    if not all(sides):
        raise UsageError(
            "the text is too short to set a third of it aside for fitting",
            remedy="give more text, or other text to fit on with --fit-text",
            file=corpus.sources[0].name,
        )
    first, second = (
        replace(corpus, documents=tuple(side), sha256=_hash([each.text for each in side])) for side in sides
    )
    return first, second


def text_of_task(task: Task) -> Corpus:
    """The texts of a task's examples, without their answers.

    Args:
        task: The task.
    """
    if isinstance(task, TextTask):
        return task.corpus
    if isinstance(task, ClassificationTask):
        texts = [" ".join(filter(None, pair)) for pair in task.texts]
    else:
        texts = [choice.prompts[0] for choice in task.choices]
    rows = [text for text in texts if text.strip()]
    digest = _hash(rows)
    num_bytes = sum(len(row.encode("utf-8", "surrogatepass")) for row in rows)
    source = TextSource(name=task.name, sha256=digest, num_documents=len(rows), num_bytes=num_bytes)
    documents = tuple(Document(text=row, source=0, is_row=True) for row in rows)
    return Corpus(documents=documents, sources=(source,), sha256=digest)


def _third(keys: Sequence[str], seed: int) -> set[str]:
    """A third of the distinct keys, drawn at random."""
    distinct = sorted(set(keys))
    order = np.random.default_rng(seed).permutation(len(distinct))
    return {distinct[index] for index in order[: len(distinct) // 3]}


def _cut(document: Document) -> tuple[Document, Document]:
    """The first third and the rest, cut at a line break where there is one nearby."""
    text = document.text
    at = len(text) // 3
    line = text.find("\n", at, at + len(text) // 6)
    at = at if line < 0 else line + 1
    return replace(document, text=text[:at]), replace(document, text=text[at:])


def _check_disjoint(
    fitted: Sequence[str], measured: Sequence[str], given: Task | Corpus, *, flag: str
) -> None:
    known = set(fitted)
    num_shared = sum(key in known for key in measured)
    is_running = isinstance(given, (Corpus, TextTask)) and not _is_table(given)
    # Boilerplate is in many files; an example or a row is not in two data sets by chance.
    if num_shared <= (MAX_SHARED_LINES * len(measured) if is_running else 0):
        return
    what = "lines" if is_running else ("rows" if isinstance(given, (Corpus, TextTask)) else "examples")
    raise UsageError(
        f"{flag} holds {num_shared} of the {len(measured)} {what} that are measured, but nothing may be "
        "fitted on what is reported",
        remedy=f"remove them from it, or leave {flag} out to set a third of the data aside",
        file=_name(given),
    )


def _name(given: Task | Corpus) -> str:
    return given.sources[0].name if isinstance(given, Corpus) else given.name


def _is_table(given: Corpus | TextTask) -> bool:
    corpus = given if isinstance(given, Corpus) else given.corpus
    return all(document.is_row for document in corpus.documents)


def _task_items(task: Task) -> list[str]:
    """A hash of each example; of what it asks, whatever the label."""
    if isinstance(task, ClassificationTask):
        return [_hash(list(texts)) for texts in task.texts]
    if isinstance(task, ChoiceTask):
        return [_hash([choice.prompts, choice.endings]) for choice in task.choices]
    return _text_items(task.corpus)


def _text_items(corpus: Corpus) -> list[str]:
    """A hash of each row, or of each line of running text that is long enough to be told apart."""
    return [
        _hash(line)
        for document in corpus.documents
        for line in ([document.text.strip()] if document.is_row else telling_lines(document.text))
    ]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()
