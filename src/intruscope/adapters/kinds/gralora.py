"""GraLoRA (arXiv 2505.20355): a k x k grid of blocks with factors of rank r / k each, beside a plain LoRA.

Block (row k, column n) is B[k, slice n] A[n, slice k], slices being r / k ranks (tuners/gralora/layer.py).

Shape suffixes: K blocks of rows, N blocks of columns (K = N), S ranks of a block; F = K x P, I = N x Q.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, integer, number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    import torch

    right, left = parts["gralora_A"], parts["gralora_B"]
    grid, width, rank = right.shape
    right_NQKS = right.reshape(grid, width, grid, rank // grid)
    left_KNSP = left.reshape(grid, grid, rank // grid, left.shape[2])
    delta_FI = torch.einsum("nqks,knsp->kpnq", right_NQKS, left_KNSP).reshape(base.num_out, base.num_in)
    hybrid = 0
    if "gralora_A_general" in parts:
        hybrid = parts["gralora_A_general"].shape[0]
        delta_FI = delta_FI + parts["gralora_B_general"] @ parts["gralora_A_general"]
    return base.plus(delta_FI * (options["alpha"] / (rank + hybrid)))


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:
    """(out, in) of the whole matrix."""
    (grid, width, rank), (other_grid, other_rank, height) = shapes["gralora_A"], shapes["gralora_B"]
    if (grid, rank) != (other_grid, other_rank) or rank % grid or grid != options["gralora_k"]:
        raise ValueError("grids or ranks differ")
    return grid * height, grid * width


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    return {
        "alpha": number(raw, "alpha", path, default=64.0),
        "gralora_k": integer(raw, "gralora_k", path, default=2, least=1),
    }


_NAMES = ("gralora_A", "gralora_B")
KIND = AdapterKind(
    name="GRALORA",
    title="GraLoRA",
    words={name: name for name in (*_NAMES, "gralora_A_general", "gralora_B_general")},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset(_NAMES),
    read_options=_read_options,
)
