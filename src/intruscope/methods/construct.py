"""Expressive-power construction: adapters that are computed instead of trained.

Zeng & Lee, "The Expressive Power of Low-Rank Adaptation", ICLR 2024, arXiv 2310.17513. For a product of L
frozen linear layers and a target matrix, adapters of rank R bring the product as close to the target as
their rank allows: the error is exactly singular value LR + 1 of the difference
(``intruscope.extract.construct_adapters``). In a real model, with other operations between its layers, this
holds for each matrix separately (L = 1): given a model fine-tuned from this one, each adapter is the
truncated singular value decomposition of the update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.errors import ShapeMismatch, UsageError, printable
from intruscope.methods.attached import ADAPTER, PeftAttached, attach_peft, load_peft
from intruscope.methods.contract import Method
from intruscope.methods.lora import RANK, lora_config, lora_numbers, lora_rank
from intruscope.methods.targets import targets_of, weight_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from intruscope.methods.contract import Options, Setting


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

    from intruscope.linalg.truncated import leading

    if setting.tuned is None:
        raise UsageError(
            "no tuned model given, and construct approximates the update of one",
            remedy="pass Setting(tuned=...), or use the command line: intruscope extract BASE TUNED",
        )
    rank = int(options["rank"])
    tuned = dict(setting.tuned.named_modules())
    # All of it before the model is touched.
    closest = {
        name: leading(_update(name, model.get_submodule(name), tuned), rank + 1, seed=setting.seed)
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
        up_OR, down_RI = best.factors(rank)
        kept = len(down_RI)
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.zero_()[:kept] = down_RI
            layer.lora_B[ADAPTER].weight.zero_()[:, :kept] = up_OR
        attached.errors[name] = float(best.values_K[rank:][:1].sum())
    return attached


def _update(name: str, base: nn.Module, tuned: dict[str, nn.Module]) -> Tensor:
    """(out, in), float64."""
    before_OI = weight_of(base).double()
    found = tuned.get(name)
    if found is None:
        raise UsageError(
            "the tuned model has no such matrix, so it is of another architecture",
            remedy="pass the model that was fine-tuned from this one",
            tensor=name,
        )
    after_OI = weight_of(found).double()
    if after_OI.shape != before_OI.shape:
        raise ShapeMismatch(
            f"the shape is {list(after_OI.shape)} in the tuned model and {list(before_OI.shape)} in the "
            "base (out, in)",
            remedy="pass the model that was fine-tuned from this one",
            tensor=printable(name),
        )
    return after_OI.to(before_OI.device) - before_OI


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
