"""MultiLoRA's second factor: parallel up-projections, each times a learned scale that starts at zero.

Shape suffixes: O out, I in, N adapters, R rank of one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # as everywhere
from torch import nn

from intruscope.methods.factored_layers import PlainFactor, use_factors

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor


class ScaledUps(nn.Module):
    """``sum_i scale_i B_i h_i`` of N parallel up-projections.

    Args:
        out_features: O.
        rank: R of one of them.
        num_adapters: N.
        per_output: One scale for each output of each, instead of one for each.
    """

    def __init__(self, out_features: int, rank: int, *, num_adapters: int, per_output: bool) -> None:
        super().__init__()
        ups = torch.empty(num_adapters, out_features, rank)
        for up in ups:
            nn.init.kaiming_uniform_(up, a=math.sqrt(5))
        self.weight = nn.Parameter(ups)
        self.scale = nn.Parameter(torch.zeros(num_adapters, out_features if per_output else 1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., N * R) to (..., O)."""
        return F.linear(x, self.dense())

    def dense(self) -> Tensor:
        """(O, N * R): the scaled up-projections side by side."""
        return (self.scale.unsqueeze(-1) * self.weight).movedim(0, 1).flatten(1)


def scaled_factors(
    in_features: int, out_features: int, rank: int, *, num_adapters: int, per_output: bool
) -> tuple[nn.Module, nn.Module]:
    """Start of one layer: all factors random, all scales zero."""
    downs = PlainFactor(in_features, num_adapters * rank)  # each row starts as LoRA's do
    return downs, ScaledUps(out_features, rank, num_adapters=num_adapters, per_output=per_output)


def use_scaled(config: LoraConfig, *, num_adapters: int, per_output: bool) -> LoraConfig:
    """Let a config build MultiLoRA's layers."""
    return use_factors(config, partial(scaled_factors, num_adapters=num_adapters, per_output=per_output))
