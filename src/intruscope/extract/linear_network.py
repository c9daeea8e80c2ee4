"""Adapters for a network of linear layers, with an exact law of their error.

Zeng & Lee, "The Expressive Power of Low-Rank Adaptation", ICLR 2024, arXiv 2310.17513: adapters of rank R on
the L layers of a frozen linear network bring its product to within the singular value LR + 1 of what was
missing. No adapters of that rank come closer: what they add to the product has rank LR at most. One layer
alone (L = 1) is the truncated decomposition that an extraction writes.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.errors import MalformedInput, ShapeMismatch, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_WORST_CONDITION = 1e12
"""Above it, an inverse in float64 has fewer than four correct digits."""


@dataclass(frozen=True, kw_only=True)
class Construction:
    """Adapters of a network of linear layers.

    Attributes:
        factors: B (out, R) and A (R, in) of each layer, from the input on, float64; the update is B A.
        error: Spectral norm of target minus adapted product in exact arithmetic: singular value LR + 1 of
            target minus frozen product, 0 where there is none.
    """

    factors: tuple[tuple[Tensor, Tensor], ...]
    error: float


def construct_adapters(frozen: Sequence[Tensor], target: Tensor, rank: int) -> Construction:
    """Adapters of a rank that bring the product of frozen layers closest to a target.

    With E what is missing, Q_l the l-th block of R of its right singular vectors, S_l the product of the
    layers above l and P_l that of the adapted ones below, the update is ``S_l^-1 E Q_l Q_l^T P_l^-1``.

    Args:
        frozen: Weights from the input on, each (out, in); square and of one size where there are several.
        target: What the product should be: (out, in).
        rank: R, at least 1.

    Raises:
        ShapeMismatch: layers that do not fit, or are not square.
        MalformedInput: numbers that are not finite.
        UsageError: a rank below 1, or a product that cannot be inverted to four digits.

    Numerics: float64 throughout; errors grow with the condition of the products.
    Cost: one decomposition of E, and two solves for each layer.
    Source: arXiv 2310.17513, its lemma on linear models.
    """
    import torch

    from intruscope.linalg.dense import svd

    layers = [layer.double() for layer in frozen]
    _check_network(layers, target, rank)
    width = target.shape[1]
    above = torch.eye(target.shape[0], dtype=torch.float64)
    tops = [above]
    for layer in reversed(layers[1:]):
        above = above @ layer
        tops.insert(0, above)
    missing = target.double() - tops[0] @ layers[0]
    _, values, right_IK = svd(missing)
    below = torch.eye(width, dtype=torch.float64)
    factors = []
    for position, (layer, top) in enumerate(zip(layers, tops, strict=True)):
        block_IR = right_IK[:, position * rank : (position + 1) * rank]
        up_OR = _solve(top, missing @ block_IR)
        down_RI = _solve(below.T, block_IR).T
        factors.append((up_OR, down_RI))
        below = (layer + up_OR @ down_RI) @ below
    num_used = len(layers) * rank
    return Construction(
        factors=tuple(factors), error=float(values[num_used]) if num_used < len(values) else 0.0
    )


def _check_network(layers: Sequence[Tensor], target: Tensor, rank: int) -> None:
    if rank < 1:
        raise UsageError(f"the rank is {rank}, but must be at least 1", remedy="use a positive integer")
    shapes = [tuple(layer.shape) for layer in layers]
    square = len(layers) == 1 or all(shape == (target.shape[0],) * 2 for shape in shapes)
    if not layers or not square or shapes[0][1] != target.shape[1] or shapes[-1][0] != target.shape[0]:
        raise ShapeMismatch(
            f"layers of the shapes {shapes} do not fit a target of {tuple(target.shape)} (out, in); use one "
            "layer of that shape, or several square ones",
            remedy="construct layers of other shapes one by one",
        )
    if not all(bool(matrix.isfinite().all()) for matrix in (*layers, target)):
        raise MalformedInput(
            "a layer or the target contains NaN or infinity",
            remedy="check where it comes from",
        )


def _solve(matrix: Tensor, right_hand: Tensor) -> Tensor:
    import torch

    condition = float(torch.linalg.cond(matrix))
    if not condition <= _WORST_CONDITION:
        raise UsageError(
            f"a product of layers, which the construction inverts, has the condition number {condition:.1e}; "
            f"at most {_WORST_CONDITION:.0e} is supported",
            remedy="construct the layers one by one, or perturb the frozen layers or the target slightly",
        )
    solved: Tensor = torch.linalg.solve(matrix, right_hand)
    return solved
