"""The order in which examples are taken, where those of one length go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intruscope.train.data import Example, Examples

_STRIDE = 1_000_003  # so that one seed's second pass is not the first of the next seed


class LengthOrder(LengthGroupedSampler):  # type: ignore[misc]
    """transformers' order by length, drawn from a seed and the epoch alone.

    Theirs draws from torch's own random state and depends on the share of a batch that one process takes.
    This one is the same after a resumed run, and for any number of processes or parts of a batch.

    Args:
        examples: To order.
        batch: Examples per optimiser step, of all processes and parts together.
        seed: Of the order; each epoch has another.
    """

    def __init__(self, examples: Examples, *, batch: int, seed: int) -> None:
        super().__init__(batch, lengths=[num_tokens(row) for row in examples.rows])
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each pass."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + _STRIDE * self._epoch)
        order: Iterator[int] = super().__iter__()
        return order


def num_tokens(row: Example) -> int:
    """How long an encoded example makes its batch: of multiple choice, its longest ending."""
    ids: Any = row["input_ids"]
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)
