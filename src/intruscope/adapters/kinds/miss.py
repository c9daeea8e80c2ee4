"""MiSS (arXiv 2409.15371): every r-th input shares a row of one matrix D; ΔW[:, j] = D[j mod r], of rank r.

The variant ``mini`` also repeats D over the outputs; ``bat`` multiplies blocks of W by it as well.

Shape suffixes: F rows of the whole matrix, I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate, LowRankUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> LowRankUpdate | DenseUpdate:
    """The update; see the module."""
    import torch

    block = parts["miss_block"]
    if options["variant"] == "bat":
        return base.plus(_bat(block, base.whole()))
    if options["variant"] == "mini":
        block = block.repeat(1, base.num_out // block.shape[1])
    shared_RI = torch.eye(block.shape[0], dtype=block.dtype).repeat(1, -(-base.num_in // block.shape[0]))
    return base.low_rank(block.T.contiguous(), shared_RI[:, : base.num_in].contiguous())


def _bat(block: torch.Tensor, whole_FI: torch.Tensor) -> torch.Tensor:
    """Each r x r block W_fi of the whole matrix gains W_fi D_f + D_f."""
    rank = block.shape[-1]
    rows, columns = whole_FI.shape[0] // rank, whole_FI.shape[1] // rank
    blocks = whole_FI.reshape(rows, rank, columns, rank).permute(2, 0, 1, 3)
    return (blocks @ block + block).permute(1, 2, 0, 3).reshape(whole_FI.shape)


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(out, in) of the whole matrix, as far as they show."""
    shape = shapes["miss_block"]
    if options["variant"] == "bat":
        rows, rank, _ = shape
        return rows * rank, None
    _, num_out = shape
    return (None if options["variant"] == "mini" else num_out), None


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:  # noqa: ARG001
    variant = raw.get("init_weights")
    return {"variant": variant if variant in ("bat", "mini") else "plain"}


KIND = AdapterKind(
    name="MISS",
    title="MiSS",
    words={"miss_block": "miss_block"},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset({"miss_block"}),
    read_options=_read_options,
)
