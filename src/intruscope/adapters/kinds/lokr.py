"""LoKr (arXiv 2309.14859): ΔW = s W₁ ⊗ W₂, a Kronecker product; either side may be a product of two factors.

Shape suffixes: F rows of the whole matrix, I in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    import torch

    first, second = _first(parts), _second(parts)
    # The kernel's axes belong to the second side.
    first = first.reshape(*first.shape, *[1] * (second.dim() - 2))
    delta_FI = torch.kron(first, second).flatten(1)
    return base.plus(delta_FI * options["scaling"])


def _first(parts: Parts) -> torch.Tensor:
    return parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]


def _second(parts: Parts) -> torch.Tensor:
    import torch

    if "lokr_w2" in parts:
        return parts["lokr_w2"]
    left, right = parts["lokr_w2_a"], parts["lokr_w2_b"]
    if "lokr_t2" in parts:  # core (R, R, k, l); left (R, out); right (R, in)
        return torch.einsum("ijkl,ip,jr->prkl", parts["lokr_t2"], left, right)
    return left @ right


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:
    """(out, in) of the whole matrix."""
    first = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
    if "lokr_w2" in shapes:
        second = (shapes["lokr_w2"][0], math.prod(shapes["lokr_w2"][1:]))
    elif "lokr_t2" in shapes:
        kernel = math.prod(shapes["lokr_t2"][2:])
        second = (shapes["lokr_w2_a"][1], shapes["lokr_w2_b"][1] * kernel)
    else:
        second = (shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][1])
    ranks = {shapes[name][0] for name in ("lokr_w1_b", "lokr_w2_b") if name in shapes}
    if ranks - {options["rank"]}:
        raise ValueError(f"their rank is {max(ranks)}, the config says {options['rank']}")
    return first[0] * second[0], first[1] * second[1]


_NAMES = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
KIND = AdapterKind(
    name="LOKR",
    title="LoKr",
    words={name: name for name in _NAMES},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True),
    required=frozenset(),
    alpha_name="alpha",
)
