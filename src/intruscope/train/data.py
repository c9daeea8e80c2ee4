"""Task files and text as what a Trainer is fed: a model class, examples, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_models import max_context
from intruscope.errors import MalformedInput, UsageError
from intruscope.forgetting.tasks import ClassificationTask, Task
from intruscope.forgetting.windows import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from intruscope.forgetting.texts import Corpus

Example = dict[str, Any]
DataKind = Literal["classification", "causal", "masked"]
MASKED_SHARE = 0.15
"""Devlin et al. 2018, section 3.1."""


class Examples(torch.utils.data.Dataset[Example]):
    """Encoded examples, in order."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.rows[index]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run is fed.

    Attributes:
        kind: Of the loss.
        examples: To train on.
        collate: From examples to a batch.
        num_cut: Examples longer than the limit.
    """

    kind: DataKind
    examples: Examples
    collate: Callable[[list[Example]], dict[str, Any]]
    num_cut: int

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """The first batches as the model takes them, for methods that start from data."""
        for first in range(0, min(len(self.examples), 16 * size), size):
            yield self.collate(
                [self.examples[i] for i in range(first, min(first + size, len(self.examples)))]
            )


def label_names(task: Task) -> tuple[str, ...]:
    """The classes of a task in their order: as the user gave them, else sorted, numbers as numbers.

    Raises:
        UsageError: no classification, or a single class.
    """
    if not isinstance(task, ClassificationTask):
        raise UsageError(
            f"got {task.name}, which is no classification, expected texts with labels",
            remedy="train a language model on it with --text",
            file=task.name,
        )
    if task.order is not None:
        return task.order
    found = set(task.labels)
    if len(found) < 2:
        raise MalformedInput(
            f"got {len(found)} kinds of labels, expected at least 2",
            remedy="check the column of the labels (--task-fields)",
            file=task.name,
        )
    numeric = all(label.lstrip("-").isdigit() for label in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


def classification_data(
    task: ClassificationTask, labels: tuple[str, ...], tokenizer: Any, max_length: int
) -> TrainingData:
    """A classification task, encoded.

    Raises:
        MalformedInput: a label that is none of the classes.
    """
    from transformers import DataCollatorWithPadding

    numbers = task.numbers(labels)
    rows: list[Example] = []
    num_cut = 0
    for (first, second), number in zip(task.texts, numbers, strict=True):
        encoded = dict(tokenizer(first, second, verbose=False))
        if len(encoded["input_ids"]) > max_length:
            encoded = dict(tokenizer(first, second, truncation=True, max_length=max_length))
            num_cut += 1
        rows.append({**encoded, "labels": number})
    return TrainingData(
        kind="classification",
        examples=Examples(rows),
        collate=DataCollatorWithPadding(tokenizer),
        num_cut=num_cut,
    )


def text_data(
    corpus: Corpus, model: nn.Module, tokenizer: Any, kind: Literal["causal", "masked"], max_length: int
) -> TrainingData:
    """Text for a language model: running text in windows of which each token is predicted once, or lines.

    Raises:
        IntruscopeError: the tokenizer does not fit, or there is too little text.
    """
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    language = LanguageModel(
        model=model, tokenizer=tokenizer, kind=kind, max_context=max_context(model, tokenizer)
    )
    stride = max_length - 1 if kind == "causal" else None
    sequences = cut(corpus, language, context=max_length, stride=stride)
    rows: list[Example] = []
    for window in sequences.windows:
        ids = window.ids.tolist()
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        rows.append({**row, "labels": ids} if kind == "causal" else row)
    collate: Any
    if kind == "causal":
        collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    else:
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=MASKED_SHARE)
    return TrainingData(kind=kind, examples=Examples(rows), collate=collate, num_cut=0)
