"""HRA (arXiv 2405.17484): W' = W ∏ᵢ (I - 2 uᵢ uᵢᵀ), Householder reflections of the inputs.

With ``apply_GS`` the vectors are orthonormalised first.

Shape suffixes: O out, I in, R reflections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, flag
from intruscope.weights.matrices import DenseUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    vectors_IR = parts["hra_u"] / parts["hra_u"].norm(dim=0)
    tuned_OI = base.matrix_OI
    if options["apply_GS"]:
        basis_IR = _orthonormal(vectors_IR)
        return DenseUpdate(tuned_OI=tuned_OI - 2.0 * (tuned_OI @ basis_IR) @ basis_IR.T)
    for vector_I in vectors_IR.T:
        tuned_OI = tuned_OI - 2.0 * (tuned_OI @ vector_I).outer(vector_I)
    return DenseUpdate(tuned_OI=tuned_OI)


def _orthonormal(vectors_IR: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the vectors' span; the product of reflections depends on the span alone."""
    import torch

    basis_IR: torch.Tensor = torch.linalg.qr(vectors_IR)[0]
    return basis_IR


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[None, int]:  # noqa: ARG001 - the shape tells
    """The inputs; reflections fit any number of outputs."""
    num_in, _ = shapes["hra_u"]
    return None, num_in


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    return {"apply_GS": flag(raw, "apply_GS", path)}


KIND = AdapterKind(
    name="HRA",
    title="HRA",
    words={"hra_u": "hra_u"},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True, additive=False),
    required=frozenset({"hra_u"}),
    read_options=_read_options,
)
