"""Float8 in blocks, as DeepSeek-V3 and Qwen's FP8 checkpoints store it.

``X.weight`` holds float8 (e4m3) numbers q, ``X.weight_scale_inv`` one float32 scale per block of 128 x 128
(``weight_block_size`` in the config): w is q times the scale of its block, despite the name. Blocks are cut
off at the edges. Source: transformers integrations/finegrained_fp8.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.weights.number_formats import Unpacked
from intruscope.weights.stored import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

_SCALE = "_scale_inv"
_BLOCK = (128, 128)


@dataclass(frozen=True, kw_only=True)
class BlockScaledTensor(StoredTensor):
    """A matrix of float8 numbers with a scale per block, read as float32.

    Attributes:
        packed: The float8 numbers.
        scales: Shape (ceil(rows / block rows), ceil(columns / block columns)).
        block: Rows and columns of a block.
    """

    packed: StoredTensor
    scales: StoredTensor
    block: tuple[int, int]

    def read_leading(self, first: int, count: int) -> torch.Tensor:
        """Dequantise some rows; see :class:`StoredTensor`."""
        height, width = self.block
        scales = self.scales.read_leading(first // height, -(-(first + count) // height) - first // height)
        rows = scales.float().repeat_interleave(height, dim=0)[first % height :][:count]
        each = rows.repeat_interleave(width, dim=1)[:, : self.shape[1]]
        numbers: torch.Tensor = self.packed.read_packed(first, count).float()
        return numbers * each

    def raw(self) -> Iterator[bytearray]:
        """The dequantised numbers; see :class:`StoredTensor`."""
        yield bytearray(self.read().contiguous().numpy().tobytes())


def unpacked(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Unpacked | None:
    """The tensors with every float8 weight readable; None unless each one has a scale of the right shape."""
    block = _block_of(config)
    packed = {name for name, tensor in tensors.items() if tensor.dtype.startswith("F8_")}
    found: dict[str, StoredTensor] = {}
    for name in packed:
        tensor, scales = tensors[name], tensors.get(f"{name}{_SCALE}")
        if block is None or scales is None or not scales.decodable or len(tensor.shape) != 2:
            return None
        if scales.shape != tuple(
            math.ceil(size / step) for size, step in zip(tensor.shape, block, strict=True)
        ):
            return None
        found[name] = BlockScaledTensor(
            name=name,
            path=tensor.path,
            dtype="F32",
            shape=tensor.shape,
            packed=tensor,
            scales=scales,
            block=block,
        )
    if not found:
        return None
    return Unpacked(
        tensors={**tensors, **found},
        parts=frozenset(f"{name}{_SCALE}" for name in found),
        title="float8 in blocks",
    )


def _block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block; None where the config means another format."""
    settings = config.get("quantization_config")
    if settings is None:
        return _BLOCK
    if not isinstance(settings, dict) or settings.get("quant_method") != "fp8":
        return None
    block = settings.get("weight_block_size", list(_BLOCK))
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        return None
    return block[0], block[1]
