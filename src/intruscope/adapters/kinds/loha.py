"""LoHa (arXiv 2108.06098): ΔW = s (A₁ B₁) ∘ (A₂ B₂), an elementwise product; its rank is up to r².

Convolutions may have one more factor on each side, over the kernel (Tucker's form, ``hada_t1``, ``hada_t2``).

Shape suffixes: F rows of the whole matrix, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    first_FI, second_FI = (_side(parts, number) for number in (1, 2))
    return base.plus(first_FI * second_FI * options["scaling"])


def _side(parts: Parts, number: int) -> torch.Tensor:
    import torch

    left, right = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    core = parts.get(f"hada_t{number}")
    if core is None:
        return left @ right
    # core (R, R, k, l); left (R, F); right (R, I)
    return torch.einsum("ijkl,jr,ip->prkl", core, right, left).flatten(1)


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:
    """(out, in) of the whole matrix."""
    found = {_side_sizes(shapes, number) for number in (1, 2)}
    (size,) = found
    rank = shapes["hada_w1_b"][0]
    if rank != options["rank"]:
        raise ValueError(f"their rank is {rank}, the config says {options['rank']}")
    return size


def _side_sizes(shapes: Shapes, number: int) -> tuple[int, int]:
    left, right = shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"]
    if f"hada_t{number}" not in shapes:
        if left[1] != right[0]:
            raise ValueError("ranks differ")
        return left[0], right[1]
    core = shapes[f"hada_t{number}"]
    if (left[0], right[0]) != core[:2]:
        raise ValueError("ranks differ")
    return left[1], right[1] * core[2] * core[3]


_NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
KIND = AdapterKind(
    name="LOHA",
    title="LoHa",
    words={name: name for name in (*_NAMES, "hada_t1", "hada_t2")},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True),
    required=frozenset(_NAMES),
    alpha_name="alpha",
)
