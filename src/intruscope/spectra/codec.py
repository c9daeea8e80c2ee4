"""Tensors as plain data, as journals hold them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def pack_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """A float64 or float32 tensor as JSON carries it without loss; :func:`unpack_tensor` is the way back."""
    data = tensor.contiguous().numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), dtype: base64.b64encode(data).decode("ascii")}


def unpack_tensor(packed: dict[str, Any]) -> torch.Tensor:
    """The tensor that was packed."""
    import torch

    (dtype,) = packed.keys() - {"shape"}
    data = bytearray(base64.b64decode(packed[dtype], validate=True))
    kind: torch.dtype = getattr(torch, dtype)
    flat = torch.frombuffer(data, dtype=kind) if data else torch.zeros(0, dtype=kind)
    return flat.reshape(packed["shape"])
