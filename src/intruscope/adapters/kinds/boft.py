"""BOFT (arXiv 2311.06243): W' = diag(s) W Rᵀ with a block-diagonal rotation R made by Cayley transforms.

Only one butterfly factor is read: more need PEFT's CUDA extension, and no CPU can train or merge them.

Shape suffixes: F rows of the whole matrix, O out, I in, B blocks, D their size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm
from intruscope.weights.matrices import DenseUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:  # noqa: ARG001
    """The tuned matrix; see the module."""
    import torch

    stored_BDD = parts["boft_R"][0]
    skew = 0.5 * (stored_BDD - stored_BDD.transpose(1, 2))
    eye = torch.eye(skew.shape[1], dtype=skew.dtype).expand_as(skew)
    rotations_BDD = torch.linalg.solve(eye + skew, eye - skew, left=False)
    blocks = base.matrix_OI.reshape(base.matrix_OI.shape[0], *skew.shape[:2])
    turned_OI = torch.einsum("obd,bed->obe", blocks, rotations_BDD).flatten(1)
    return DenseUpdate(tuned_OI=turned_OI * base.rows(parts["boft_s"].reshape(-1, 1)))


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG001 - shapes tell all
    """(out, in) of the whole matrix."""
    num_factors, num_blocks, size, columns = shapes["boft_R"]
    if num_factors != 1:
        raise ValueError(f"{num_factors} butterfly factors; one is read")
    if size != columns:
        raise ValueError("blocks are not square")
    scale = shapes["boft_s"]
    return max(scale), num_blocks * size


KIND = AdapterKind(
    name="BOFT",
    title="BOFT",
    words={"boft_R": "boft_R", "boft_s": "boft_s"},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True, additive=False),
    required=frozenset({"boft_R", "boft_s"}),
)
