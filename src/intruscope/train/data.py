"""What a Trainer is fed: examples, and how they become batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from intruscope.errors import MalformedInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intruscope.forgetting.tasks import ClassificationTask

Example = dict[str, Any]


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
        examples: To train on.
        collate: From examples to a batch.
        num_cut: Examples longer than the limit.
    """

    examples: Examples
    collate: Callable[[list[Example]], dict[str, Any]]
    num_cut: int

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """The first batches as the model takes them, for methods that start from data."""
        for first in range(0, min(len(self.examples), 16 * size), size):
            yield self.collate(
                [self.examples[i] for i in range(first, min(first + size, len(self.examples)))]
            )


def label_names(task: ClassificationTask) -> tuple[str, ...]:
    """The classes of a task in their order: as the user gave them, as the task is known, or else sorted.

    Numbers are sorted as numbers.

    Raises:
        MalformedInput: a single class.
    """
    if task.order is not None:
        return task.order
    if task.classes:
        return task.classes
    found = set(task.labels)
    if len(found) < 2:
        raise MalformedInput(
            f"the task has {len(found)} distinct labels, and a classifier needs at least 2",
            remedy="check which column holds the labels (--task-fields)",
            file=task.name,
        )
    numeric = all(label.lstrip("-").isdigit() for label in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


def chosen(count: int, at_most: int | None, seed: int) -> Sequence[int]:
    """Which of so many examples are taken, in their order: all, or a random part that the seed decides."""
    if at_most is None or at_most >= count:
        return range(count)
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(count, generator=generator)[:at_most].tolist())
