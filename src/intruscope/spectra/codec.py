"""Records back from plain data: what journals and files hold becomes frozen records again."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from intruscope.spectra.records import (
    Estimate,
    GridCount,
    Match,
    MatrixReport,
    NullCount,
    SideReport,
    SimilarityMap,
    UpdateReport,
)
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    import torch


def matrix_report_from_dict(data: dict[str, Any]) -> MatrixReport:
    """Rebuild a :class:`MatrixReport` from ``dataclasses.asdict`` of one, JSON in between or not."""
    return MatrixReport(
        **{
            **data,
            "shape": tuple(data["shape"]),
            "singular_values": tuple(data["singular_values"]),
            "sides": tuple(map(_side, data["sides"])),
            "update": None if data["update"] is None else _update(data["update"]),
            "findings": tuple(Finding(**finding) for finding in data["findings"]),
        }
    )


_TUPLES = ("alignment_lower", "alignment_upper", "verdicts", "certificates", "alignment_certificates")


def _side(data: dict[str, Any]) -> SideReport:
    outside, null, similarity = data["outside_column_space"], data["null"], data["similarity"]
    return SideReport(
        **{
            **data,
            **{name: tuple(data[name]) for name in _TUPLES},
            "outside_column_space": None if outside is None else tuple(outside),
            "matches": tuple(None if match is None else Match(**match) for match in data["matches"]),
            "grid": tuple(GridCount(**count) for count in data["grid"]),
            "null": None if null is None else NullCount(**{**null, "counts": tuple(null["counts"])}),
            "similarity": None
            if similarity is None
            else SimilarityMap(**{**similarity, "levels": _levels(similarity["levels"])}),
        }
    )


def _levels(stored: str | list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """One byte a level: as numbers in the journal, as base64 in the public report."""
    return tuple(base64.b64decode(stored, validate=True) if isinstance(stored, str) else stored)


def _update(data: dict[str, Any]) -> UpdateReport:
    rank = data["effective_rank"]
    return UpdateReport(**{**data, "effective_rank": None if rank is None else Estimate(**rank)})


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
