"""DeLoRA (arXiv 2503.18225): ΔW = (λ / r) Σᵢ bᵢ aᵢᵀ / (‖aᵢ‖ ‖bᵢ‖), columns scaled by the base's column norms.

The norms are those of the base that the adapter was trained on, and are stored with it.

Shape suffixes: F rows of the whole matrix, I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import LowRankUpdate

_LEAST_NORM = 1e-4
"""Below it PEFT divides by this instead (tuners/delora/layer.py)."""


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> LowRankUpdate:  # noqa: ARG001
    """The update; see the module."""
    right_RI, left_FR = parts["delora_A"], parts["delora_B"]
    norms_R = right_RI.norm(dim=1).clamp(min=_LEAST_NORM) * left_FR.norm(dim=0).clamp(min=_LEAST_NORM)
    scale_R = parts["delora_lambda"] / right_RI.shape[0] / norms_R
    return base.low_rank(left_FR * scale_R, right_RI * parts["delora_w_norm"])


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG001 - shapes tell all
    """(out, in) of the whole matrix."""
    (rank, num_in), (num_out, other) = shapes["delora_A"], shapes["delora_B"]
    if rank != other or shapes["delora_w_norm"] != (num_in,):
        raise ValueError("ranks or norms differ")
    return num_out, num_in


_NAMES = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
KIND = AdapterKind(
    name="DELORA",
    title="DeLoRA",
    words={name: name for name in _NAMES},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset(_NAMES),
)
