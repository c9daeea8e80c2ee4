"""The tasks that papers compare fine-tuning on, by their short names.

Each is read from a folder of files or, without one, from its dataset on the hub. Labels get their real names
in the order of the hub, so that a head trained on one copy fits the other.

A task without separate files is split here: an example belongs to ``eval`` where the SHA-256 of its subject
(FEVER: the claim; Social IQa: the story), as a decimal number, ends in 0, and to ``train`` otherwise. So the
split is the same everywhere, and no claim or story is on both sides.

Sources: GLUE (arXiv 1804.07461), WinoGrande (1907.10641), Social IQa (1904.09728), FEVER (1803.05355),
BoolQ (1905.10044). Social IQa and BoolQ have the instruction form of LLM-Adapters (2304.01933), in which
BoolQ is asked without its passage.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intruscope.errors import MalformedInput, UsageError, nearest, printable
from intruscope.forgetting.tasks import Task, choice_task, classification_task, load_task
from intruscope.forgetting.texts import HUB_PREFIX, read_hub_table, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Split = Literal["train", "eval"]
Row = dict[str, Any]
FOLDER_VARIABLE = "INTRUSCOPE_DATA"
"""Environment variable with the folder of the tasks' files."""

_EVERY = 10
"""One example in this many is held out of a file that is split here."""
# The revision on the hub that has the Parquet files of datasets that are scripts elsewhere.
_AS_PARQUET = "@refs/convert/parquet"


@dataclass(frozen=True, kw_only=True)
class _Named:
    """Where a task is stored, and what its rows mean.

    Attributes:
        files: Files for training and evaluation, relative to the folder; one file for both is split here.
        hub: Datasets for training and evaluation, as ``load_task`` takes them after ``hf:``.
        classes: In order; empty for multiple choice.
        fields: Columns of text on the hub; files have the usual names.
        about: The subject of a row, which decides its side of a split.
        from_hub: Converts a row of the hub to the form of the files.
        key: Column on the hub whose repeated values are one example.
    """

    files: tuple[str, str]
    hub: tuple[str, str]
    classes: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    about: Callable[[Row], str] | None = None
    from_hub: Callable[[Row], Row] | None = None
    key: str | None = None


def _glue(name: str, fields: tuple[str, ...], classes: tuple[str, ...], held_out: str = "") -> _Named:
    where = f"nyu-mll/glue:{name}"
    return _Named(
        files=(f"{name}/train.json", f"{name}/dev.json"),
        hub=(f"{where}:train", f"{where}:validation{held_out}"),
        classes=classes,
        fields=fields,
    )


def _story(row: Row) -> str:
    """The text before the question itself: several questions share a story."""
    asked: str = row["instruction"].partition("Answer1:")[0]
    return asked.strip().rpartition(". ")[0] or asked.strip()


def _siqa(row: Row) -> Row:
    """A row of allenai/social_i_qa as an instruction."""
    answers = " ".join(f"Answer{i}: {row[f'answer{letter}']}" for i, letter in enumerate("ABC", start=1))
    return {
        "instruction": f"Please choose the correct answer to the question: {row['context']} {row['question']}"
        f"\n\n{answers}\n\nAnswer format: answer1/answer2/answer3",
        "answer": f"answer{row['label']}",
    }


def _boolq(row: Row) -> Row:
    """A row of google/boolq as an instruction."""
    question = row["question"].strip().rstrip("?")
    return {
        "instruction": "Please answer the following question with true or false, question: "
        f"{question}?\n\nAnswer format: true/false",
        "answer": str(row["answer"]).lower(),
    }


_TASKS: dict[str, _Named] = {
    "sst2": _Named(
        files=("sst2/train_full.tsv", "sst2/dev.tsv"),
        hub=("nyu-mll/glue:sst2:train", "nyu-mll/glue:sst2:validation"),
        classes=("negative", "positive"),
        fields=("sentence",),
    ),
    "mnli": _glue(
        "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), held_out="_matched"
    ),
    "qqp": _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "mrpc": _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "rte": _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "cola": _glue("cola", ("sentence",), ("unacceptable", "acceptable")),
    "winogrande": _Named(
        files=("winogrande/train_l.jsonl", "winogrande/dev.jsonl"),
        hub=("allenai/winogrande:winogrande_l:train", "allenai/winogrande:winogrande_l:validation"),
    ),
    "siqa": _Named(
        files=("siqa/all_1954.json", "siqa/all_1954.json"),
        hub=(f"allenai/social_i_qa{_AS_PARQUET}:train", f"allenai/social_i_qa{_AS_PARQUET}:validation"),
        about=_story,
        from_hub=_siqa,
    ),
    "fever": _Named(
        files=("fever/paper_dev.jsonl", "fever/paper_dev.jsonl"),
        hub=(f"fever/fever{_AS_PARQUET}:v1.0:train", f"fever/fever{_AS_PARQUET}:v1.0:paper_dev"),
        classes=("SUPPORTS", "REFUTES", "NOT ENOUGH INFO"),
        fields=("claim",),
        about=lambda row: row["claim"],
        key="id",  # on the hub, a claim has one row per piece of evidence
    ),
    "boolq": _Named(
        files=("boolq/train.json", "boolq/test.json"),
        hub=("google/boolq:train", "google/boolq:validation"),
        from_hub=_boolq,
    ),
}
NAMES: tuple[str, ...] = tuple(_TASKS)
"""The names of all tasks."""


def named_task(
    name: str, *, split: Split, folder: Path | None = None, labels: Sequence[str] | None = None
) -> Task:
    """A task by its short name.

    Args:
        name: One of ``NAMES``.
        split: ``train`` to train on, ``eval`` to score.
        folder: A folder with one folder per task; without it, the task is read from the hub.
        labels: The model's classes in order, where their names differ from the task's.

    Raises:
        UsageError: no such task, no such file, or the hub cannot be reached.
        MalformedInput: a damaged file, or labels that are not the task's.
    """
    if name not in _TASKS:
        raise UsageError(
            f"there is no task of this name; the tasks are {', '.join(NAMES)}",
            remedy=nearest(name, NAMES, what="task") or "check the name",
            file=name,
        )
    task = _TASKS[name]
    held_out = split == "eval"
    if folder is None:
        source = HUB_PREFIX + task.hub[held_out]
        rows = _from_hub(task, read_hub_table(source), source)
    else:
        path = folder / task.files[held_out]
        source = str(path)
        if not path.is_file():
            fact = f"no such file, which should hold the task {name}"
            raise UsageError(fact, remedy="check --data, or leave it out to use the hub", file=path)
        rows = _own_side(task, read_table(path), source, held_out=held_out)
    if not rows:
        raise MalformedInput("this task has no examples", remedy="check the file", file=source)
    if not task.classes:
        return choice_task(rows, source)
    fields = task.fields if folder is None else None
    return classification_task(rows, source, fields, "label", labels, classes=task.classes)


def _from_hub(task: _Named, rows: list[Row], source: str) -> list[Row]:
    if task.key is not None:
        rows = list({row.get(task.key): row for row in reversed(rows)}.values())[::-1]
    try:
        return [task.from_hub(row) for row in rows] if task.from_hub is not None else rows
    except (KeyError, AttributeError) as error:
        fact = f"the dataset on the hub has changed its form ({printable(error)})"
        raise MalformedInput(fact, remedy="download the task and name its file", file=source) from None


def _own_side(task: _Named, rows: list[Row], source: str, *, held_out: bool) -> list[Row]:
    """The rows of this split, where one file holds both."""
    if task.about is None:
        return rows
    try:
        return [row for row in rows if _is_held_out(task.about(row)) == held_out]
    except (KeyError, AttributeError) as error:
        fact = f"a row is without {printable(error)}"
        raise MalformedInput(fact, remedy="check the file", file=source) from None


def _is_held_out(about: str) -> bool:
    return int(hashlib.sha256(about.encode()).hexdigest(), 16) % _EVERY == 0


def find_task(
    name: str | Path,
    *,
    split: Split = "eval",
    folder: Path | None = None,
    text_fields: Sequence[str] | None = None,
    label_field: str | None = None,
    labels: Sequence[str] | None = None,
) -> Task:
    """A task by its file, its dataset on the hub, or its short name; a file wins over a name.

    Args:
        name: A path, ``hf:org/name[:config][:split]``, or a short name.
        split: ``train`` or ``eval``, for a task with a short name.
        folder: Folder with the files of tasks that have short names.
        text_fields: Columns of text, in a file.
        label_field: Column of the labels, in a file.
        labels: The model's classes in order.

    Raises:
        UsageError: no such file or task, or no such columns.
        MalformedInput: damaged, empty, or labels and answers that do not fit.
    """
    name = str(name)
    if Path(name).is_file() or name.startswith(HUB_PREFIX) or re.search(r"[/\\.]", name):
        return load_task(name, text_fields=text_fields, label_field=label_field, labels=labels)
    if text_fields is not None or label_field is not None:
        raise UsageError(
            f"--task-fields names columns, but the task {printable(name)} already has its own",
            remedy="leave --task-fields out, or give a file instead of the task's name",
        )
    return named_task(name, split=split, folder=folder, labels=labels)
