"""MELoRA's factors: small adapters on the blocks of the diagonal, computed block by block.

Shape suffixes: O out, I in, N blocks, R rank of one block.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from intruscope.errors import UsageError
from intruscope.methods.factored_layers import use_factors

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor


class BlockFactor(nn.Module):
    """A block-diagonal map: blocks of (rows, columns), each on its own slice of the input.

    Args:
        blocks: (N, rows, columns).
    """

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N * columns) to (..., N * rows)."""
        num_blocks, _, columns = self.weight.shape
        sliced = x.reshape(*x.shape[:-1], num_blocks, columns)
        return torch.einsum("...nc,nrc->...nr", sliced, self.weight).flatten(-2)

    def dense(self) -> Tensor:
        """(N * rows, N * columns), zero outside the blocks."""
        dense: Tensor = torch.block_diag(*self.weight)  # type: ignore[no-untyped-call]
        return dense


def block_factors(
    in_features: int, out_features: int, rank: int, *, num_blocks: int
) -> tuple[nn.Module, nn.Module]:
    """Start of one layer: each A_i as LoRA's, each B_i zero.

    Raises:
        UsageError: a side of the matrix that the blocks do not divide.
    """
    if in_features % num_blocks or out_features % num_blocks:
        raise UsageError(
            f"num_blocks = {num_blocks} does not divide both sides of a matrix of {out_features} x "
            f"{in_features} "
            "(out x in)",
            remedy="choose another num_blocks, or other targets",
        )
    down = torch.empty(num_blocks, rank, in_features // num_blocks)
    for block in down:
        nn.init.kaiming_uniform_(block, a=math.sqrt(5))
    return BlockFactor(down), BlockFactor(torch.zeros(num_blocks, out_features // num_blocks, rank))


def use_blocks(config: LoraConfig, *, num_blocks: int) -> LoraConfig:
    """Let a config build MELoRA's layers."""
    return use_factors(config, partial(block_factors, num_blocks=num_blocks))
