"""EMR-Merging: one unified update, and for each task a mask and a rescaler.

``ΔW_t`` is replaced by ``l_t M_t * unified``; the task must be known at inference. This compresses T models
rather than making one: a mask takes one bit per entry.

Each matrix gives its unified part, its masks and sums; the rescalers come from the sums of all matrices.
Source: arXiv 2405.17461, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.merge.rules import elected_signs, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intruscope.merge.options import MergeOptions, Rescale


@dataclass(frozen=True, kw_only=True)
class TaskSums:
    """What the rescaler of one task needs from one matrix, or from several together.

    Attributes:
        task: ``Σ |τ_t|``.
        masked: ``Σ |M_t τ_u|``.
        task_mean: ``Σ |τ_t|`` over the number of entries, added up over matrices.
        masked_mean: The same of ``|M_t τ_u|``.
        product: ``<τ_t, M_t τ_u>``.
        square: ``‖M_t τ_u‖²``.
    """

    task: float = 0.0
    masked: float = 0.0
    task_mean: float = 0.0
    masked_mean: float = 0.0
    product: float = 0.0
    square: float = 0.0

    def __add__(self, other: TaskSums) -> TaskSums:
        return TaskSums(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        )


@dataclass(frozen=True, kw_only=True)
class Unified:
    """What one matrix of all tasks was reduced to.

    Attributes:
        unified: τ_u, of the shape of the parts.
        masks: M_t, one boolean array per task.
        sums: One per task.
    """

    unified: Tensor
    masks: tuple[Tensor, ...]
    sums: tuple[TaskSums, ...]

    def part(self, task: int, rescaler: float) -> Tensor:
        """``l_t M_t * τ_u``: what stands for the part of one task."""
        return torch.where(self.masks[task], rescaler * self.unified, 0.0)


def unify(parts: Sequence[Tensor], options: MergeOptions) -> Unified:
    """Elect and mask one matrix.

    The sign of an entry is that of the sum over tasks; its size is the largest among the tasks of that sign.
    The mask of a task is True where its own entry has that sign.

    Args:
        parts: One float64 array per task.
        options: The weights; each task is multiplied by its own first.

    Raises:
        UsageError: the weights do not fit.
    """
    weights = weights_of(options, len(parts))
    tasks = [weight * part for weight, part in zip(weights, parts, strict=True)]
    sign = elected_signs(tasks)
    size = torch.zeros_like(sign)
    for task in tasks:
        size = torch.maximum(size, torch.where(task * sign > 0.0, task.abs(), 0.0))
    unified = sign * size
    masks = tuple(task * unified > 0.0 for task in tasks)
    return Unified(
        unified=unified,
        masks=masks,
        sums=tuple(
            _sums(task, torch.where(mask, unified, 0.0)) for task, mask in zip(tasks, masks, strict=True)
        ),
    )


def _sums(task: Tensor, masked: Tensor) -> TaskSums:
    size = max(task.numel(), 1)
    own, kept = float(task.abs().sum()), float(masked.abs().sum())
    return TaskSums(
        task=own,
        masked=kept,
        task_mean=own / size,
        masked_mean=kept / size,
        product=float((task * masked).sum()),
        square=float(masked.square().sum()),
    )


def rescalers(matrices: Iterable[Sequence[TaskSums]], rescale: Rescale) -> tuple[float, ...]:
    """One factor per task from the sums of all matrices.

    Args:
        matrices: The ``sums`` of each matrix.
        rescale: ``paper``: ``Σ |τ_t| / Σ |M_t τ_u|`` over all entries of all matrices. ``official``, as in
            the released code: the same with means over each matrix, so that a small matrix counts as much as
            a large one. ``l2``: ``<τ_t, M_t τ_u> / ‖M_t τ_u‖²``, which minimises the distance to the task;
            the paper claims this of its own rescaler, but it can increase the distance.

    Returns:
        Dimensionless; 1 for a task of which nothing is left.
    """
    totals: list[TaskSums] = []
    for sums in matrices:
        totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else list(sums)
    above, below = {
        "paper": ("task", "masked"),
        "official": ("task_mean", "masked_mean"),
        "l2": ("product", "square"),
    }[rescale]
    return tuple(
        getattr(total, above) / getattr(total, below) if getattr(total, below) > 0.0 else 1.0
        for total in totals
    )
