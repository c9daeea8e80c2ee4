"""OPLoRA's factors: projected off the leading singular directions of the base.

Shape suffixes: O out, I in, R rank, K directions that are left alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # as everywhere
from torch import nn

from intruscope.methods.factored_layers import use_factors

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor


class _Projected(nn.Linear):
    """A factor whose product with fixed directions is zero, whatever its weight is.

    The weight is projected, not the input: the factor is thin, and a batch has many tokens.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        size: Length of the directions.
        preserved: K.
    """

    directions: Tensor

    def __init__(self, in_features: int, out_features: int, *, size: int, preserved: int) -> None:
        super().__init__(in_features, out_features, bias=False)  # starts as LoRA's A
        self.register_buffer("directions", torch.zeros(size, preserved))

    def protect(self, directions: Tensor) -> None:
        """Set the directions: orthonormal columns."""
        self.directions.copy_(directions)

    def dense(self) -> Tensor:
        """The projected weight."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """The product with the projected weight."""
        return F.linear(input, self.dense())


class ProjectedDown(_Projected):
    """``A (I - V V.T)``."""

    def dense(self) -> Tensor:
        """(R, I)."""
        return self.weight - (self.weight @ self.directions) @ self.directions.T


class ProjectedUp(_Projected):
    """``(I - U U.T) B``."""

    def dense(self) -> Tensor:
        """(O, R)."""
        return self.weight - self.directions @ (self.directions.T @ self.weight)


def projected_factors(
    in_features: int, out_features: int, rank: int, *, preserved: int
) -> tuple[nn.Module, nn.Module]:
    """Start of one layer: B zero; the directions are set later, from the base."""
    up = ProjectedUp(rank, out_features, size=out_features, preserved=preserved)
    nn.init.zeros_(up.weight)
    return ProjectedDown(in_features, rank, size=in_features, preserved=preserved), up


def use_projections(config: LoraConfig, *, preserved: int) -> LoraConfig:
    """Let a config build OPLoRA's layers."""
    return use_factors(config, partial(projected_factors, preserved=preserved))
