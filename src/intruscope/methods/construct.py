"""Expressive-power construction: adapters that are computed, not trained.

Zeng & Lee, "The Expressive Power of Low-Rank Adaptation", ICLR 2024, arXiv 2310.17513. For a frozen chain of
linear layers and a target, adapters of rank R on its L layers bring the product as close to the target as
rank allows: the error is exactly the singular value LR + 1 of what was missing
(``intruscope.methods.construct.construct_chain``). In a model with other things between its layers that holds
for each matrix alone (L = 1): given a model that was fine-tuned from this one, each adapter is the truncated
singular value decomposition of its update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.errors import ShapeMismatch, UsageError, printable
from intruscope.methods.attached import ADAPTER, PeftAttached, attach_peft, load_peft
from intruscope.methods.contract import Method
from intruscope.methods.lora import RANK, lora_config, lora_numbers, lora_rank
from intruscope.methods.targets import targets_of, weight_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from intruscope.linalg.topk import TopTriplets
    from intruscope.methods.contract import Options, Setting

_WORST_CONDITION = 1e12
"""Beyond it, float64 leaves fewer than four digits of an inverse."""


@dataclass(frozen=True, kw_only=True)
class Construction:
    """Adapters of a chain of linear layers.

    Attributes:
        factors: B (out, R) and A (R, in) of each layer, from the input on, float64; the update is B A.
        error: Spectral norm of target minus adapted product in exact arithmetic: singular value LR + 1 of
            target minus frozen product, 0 where there is none.
    """

    factors: tuple[tuple[Tensor, Tensor], ...]
    error: float


def construct_chain(frozen: Sequence[Tensor], target: Tensor, rank: int) -> Construction:
    """Adapters of a rank that bring the product of frozen layers closest to a target.

    With E what is missing, Q_l the l-th block of R of its right singular vectors, S_l the product of the
    layers above l and P_l that of the adapted ones below, the update is ``S_l^-1 E Q_l Q_l^T P_l^-1``.

    Args:
        frozen: Weights from the input on, each (out, in); square and of one size where there are several.
        target: What the product should be: (out, in).
        rank: R, at least 1.

    Raises:
        ShapeMismatch: layers that do not fit, or are not square.
        UsageError: a product that cannot be inverted to four digits.

    Numerics: float64 throughout; errors grow with the condition of the products.
    Cost: one decomposition of E, and two solves for each layer.
    """
    import torch

    from intruscope.linalg.dense import svd

    layers = [layer.double() for layer in frozen]
    _check_chain(layers, target)
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


def _check_chain(layers: Sequence[Tensor], target: Tensor) -> None:
    shapes = [tuple(layer.shape) for layer in layers]
    square = len(layers) == 1 or all(shape == (target.shape[0],) * 2 for shape in shapes)
    if not layers or not square or shapes[0][1] != target.shape[1] or shapes[-1][0] != target.shape[0]:
        raise ShapeMismatch(
            f"got layers of {shapes} for a target of {tuple(target.shape)} (out, in), expected one layer of "
            "that shape, or several square ones",
            remedy="construct single layers of other shapes one by one",
        )


def _solve(matrix: Tensor, right_hand: Tensor) -> Tensor:
    import torch

    condition = float(torch.linalg.cond(matrix))
    if not condition <= _WORST_CONDITION:
        raise UsageError(
            f"got a product of layers with the condition number {condition:.1e}, expected at most "
            f"{_WORST_CONDITION:.0e}: the construction inverts it",
            remedy="construct the layers one by one, or perturb the frozen ones or the target slightly",
        )
    solved: Tensor = torch.linalg.solve(matrix, right_hand)
    return solved


class ConstructAttached(PeftAttached):
    """LoRA whose factors were computed.

    Args:
        model: PeftModel.

    Attributes:
        errors: By matrix, the spectral norm of what the adapter leaves out of the update (singular value
            R + 1); empty where the adapter was loaded.
    """

    def __init__(self, model: Any, **rest: Any) -> None:
        super().__init__(model, **rest)
        self.errors: dict[str, float] = {}


def attach(model: nn.Module, setting: Setting, options: Options) -> ConstructAttached:
    """Put on a model the adapters that bring each matrix closest to that of ``setting.tuned``.

    Raises:
        UsageError: no tuned model was given, or it has no such matrix.
        ShapeMismatch: a matrix of another shape.
    """
    import torch

    if setting.tuned is None:
        raise UsageError(
            "got no tuned model, expected one whose update is to be approximated",
            remedy="give Setting(tuned=...), or on the command line: intruscope extract BASE TUNED",
        )
    rank = int(options["rank"])
    tuned = dict(setting.tuned.named_modules())
    # All of it before the model is touched.
    closest = {
        name: _best(_update(name, model.get_submodule(name), tuned), rank + 1, setting.seed)
        for name in targets_of(model, setting, METHOD)
    }
    attached = attach_peft(
        model,
        setting,
        # One scale of one, so that B A is the update.
        lambda **given: lora_config({"alpha": rank, "dropout": 0.0, **options}, **given),
        method=METHOD,
        kind=ConstructAttached,
    )
    assert isinstance(attached, ConstructAttached)
    for name, layer in attached._layers.items():
        best = closest[name]
        kept = min(rank, len(best.singular_values))
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.zero_()[:kept] = best.right_NK[:, :kept].T
            layer.lora_B[ADAPTER].weight.zero_()[:, :kept] = (best.left_MK * best.singular_values)[:, :kept]
        attached.errors[name] = float(best.singular_values[rank]) if len(best.singular_values) > rank else 0.0
    return attached


def _update(name: str, base: nn.Module, tuned: dict[str, nn.Module]) -> Tensor:
    """(out, in), float64."""
    before_OI = weight_of(base).double()
    found = tuned.get(name)
    if found is None:
        raise UsageError(
            "got a tuned model without this matrix, expected one of the same architecture",
            remedy="give the model that was fine-tuned from this one",
            tensor=name,
        )
    after_OI = weight_of(found).double()
    if after_OI.shape != before_OI.shape:
        raise ShapeMismatch(
            f"got {list(after_OI.shape)} in the tuned model, expected {list(before_OI.shape)} (out, in)",
            remedy="give the model that was fine-tuned from this one",
            tensor=printable(name),
        )
    return after_OI - before_OI


def _best(matrix_OI: Tensor, count: int, seed: int) -> TopTriplets:
    from intruscope.linalg.operators import Operator
    from intruscope.linalg.topk import dense_triplets, top_triplets

    operator = Operator.of(matrix_OI)
    found = top_triplets(operator, count, seed=seed) if 32 * count < min(matrix_OI.shape) else None
    return found if found is not None else dense_triplets(operator, count)


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved one on its base."""
    return load_peft(model, folder, ConstructAttached)


METHOD = Method(
    name="construct",
    title="Expressive-power construction",
    paper="arXiv 2310.17513",
    source="intruscope",
    cost="No training: one truncated decomposition per matrix. The adapter is a LoRA of that rank.",
    how_updated="B A: the closest matrix of that rank to the update of the tuned model.",
    parameters=(RANK,),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=lora_rank,
    plain_lora=True,
    departures=frozenset({"no_training", "nonzero_at_start"}),
)
