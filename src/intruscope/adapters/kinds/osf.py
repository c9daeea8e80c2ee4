"""OSF (arXiv 2504.07097): the lower singular directions of W are trained, the upper ones stay.

The file holds the trained U, S and V alone, so W' = U_k S_k V_kᵀ + U S V with the top k of the base's own
decomposition: a dense one, of the whole matrix. Where σ_k = σ_(k+1) the split is not defined.

Shape suffixes: F rows of the whole matrix, I in, K kept directions.
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

    whole_FI = base.whole().double()
    left, values, right = torch.linalg.svd(whole_FI, full_matrices=False)
    kept = len(values) - len(parts["S_low"])
    upper_FI = (left[:, :kept] * values[:kept]) @ right[:kept]
    trained_FI = (parts["U_low"] * parts["S_low"]).double() @ parts["V_low"].double()
    return DenseUpdate(tuned_OI=base.rows(upper_FI + trained_FI).to(base.matrix_OI.dtype))


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG001 - shapes tell all
    """(out, in) of the whole matrix."""
    (num_out, rank), (other, num_in) = shapes["U_low"], shapes["V_low"]
    if rank != other or shapes["S_low"] != (rank,):
        raise ValueError("ranks differ")
    return num_out, num_in


KIND = AdapterKind(
    name="OSF",
    title="OSF",
    words={"osf_svd_params": ""},  # the role is the word after it
    update=ClosedForm(decode=decode, sizes=sizes, additive=False),
    required=frozenset({"U_low", "S_low", "V_low"}),
)
