"""Factors that start at a part of the base and count from there: ``s (B A - B0 A0)`` on the unchanged base.

The papers move ``s B0 A0`` from the base into the adapter. Leaving the base as it is and subtracting the
start gives the same function with the same gradients, but nothing is rounded to the dtype of the base, and
switching the adapter off gives the base.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everywhere
from torch import nn

from intruscope.errors import UsageError
from intruscope.methods.factored_layers import PlainFactor, use_factors

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor


class _Offset(nn.Linear):
    """A factor that remembers its start."""

    start: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.register_buffer("start", torch.zeros(out_features, in_features))

    def begin_at(self, start: Tensor) -> None:
        """Set the start, and start there."""
        self.start.copy_(start)
        self.weight.data.copy_(start)

    def dense(self) -> Tensor:
        """The matrix that is applied."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """The product with :meth:`dense`."""
        return F.linear(input, self.dense())


class OffsetDown(_Offset):
    """``[A; A0]``."""

    def dense(self) -> Tensor:
        """(2 R, I)."""
        return torch.cat([self.weight, self.start])


class OffsetUp(_Offset):
    """``[B, -B0]``."""

    def dense(self) -> Tensor:
        """(O, 2 R)."""
        return torch.cat([self.weight, -self.start], dim=1)


class OffsetUpAlone(_Offset):
    """``B - B0``, for an A that stays at its start."""

    def dense(self) -> Tensor:
        """(O, R)."""
        return self.weight - self.start


class FixedDown(PlainFactor):
    """A, which stays at its start."""

    def begin_at(self, start: Tensor) -> None:
        """Set it."""
        self.weight.data.copy_(start)


def offset_factors(
    in_features: int, out_features: int, rank: int, *, fixed_down: bool
) -> tuple[nn.Module, nn.Module]:
    """Factors of one layer; their start is set later, from the base.

    Raises:
        UsageError: the rank exceeds the smaller side.
    """
    if rank > min(in_features, out_features):
        raise UsageError(
            f"rank {rank} exceeds the smaller side of a matrix of {out_features} x {in_features}",
            remedy="lower the rank, or leave the layer out of the targets",
            tensor="rank",
        )
    if fixed_down:
        return FixedDown(in_features, rank), OffsetUpAlone(rank, out_features)
    return OffsetDown(in_features, rank), OffsetUp(rank, out_features)


def use_offsets(config: LoraConfig, *, fixed_down: bool = False) -> LoraConfig:
    """Let a config build layers that count from their start.

    Args:
        config: Changed.
        fixed_down: A stays at its start.
    """
    return use_factors(config, partial(offset_factors, fixed_down=fixed_down))


def begin_at(layer: Any, adapter: str, left_OR: Tensor, values_R: Tensor, right_IR: Tensor) -> None:
    """Start a layer at ``U diag(S) V.T``: B is ``U sqrt(S / s)`` and A ``sqrt(S / s) V.T``, s the scaling."""
    root_R = (values_R / layer.scaling[adapter]).sqrt()
    layer.lora_A[adapter].begin_at((right_IR * root_R).T)
    layer.lora_B[adapter].begin_at(left_OR * root_R)
