"""B-only LoRA: A is random with all singular values 1 and frozen; only B is trained.

Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228, where it lowers
the number of high-ranking intruder dimensions. ``dW = (alpha / rank) B A``; B starts at zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.methods.attached import ADAPTER, PeftAttached, attach_peft, load_peft, tuner_layers
from intruscope.methods.contract import Method
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_rank

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.methods.contract import Options, Setting


class BOnlyAttached(PeftAttached):
    """LoRA whose A is never trained, whatever PEFT switches on and off."""

    def __init__(self, model: Any, **rest: Any) -> None:
        super().__init__(model, **rest)
        for layer in self._layers.values():
            layer.frozen_peft_weight_names = {ADAPTER: ("lora_A",)}
            layer._freeze_non_trainable_peft_weights(ADAPTER)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put B-only LoRA on a model."""
    import torch

    attached = attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, **given),
        method=METHOD,
        kind=BOnlyAttached,
    )
    generator = torch.Generator().manual_seed(setting.seed)
    for layer in tuner_layers(attached.model).values():
        down = layer.lora_A[ADAPTER].weight
        start = torch.empty(down.shape)
        torch.nn.init.orthogonal_(start, generator=generator)
        with torch.no_grad():
            down.copy_(start)
    return attached


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved one on its base, to train on."""
    return load_peft(model, folder, BOnlyAttached)


METHOD = Method(
    name="b_only",
    title="B-only LoRA",
    paper="arXiv 2410.21228",
    source="intruscope",
    cost="rank * out trainable parameters per matrix, about half of LoRA's; otherwise as LoRA.",
    how_updated="(alpha / rank) B A.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lambda num_out, num_in, options: int(options["rank"]) * num_out,  # noqa: ARG005
    max_rank=lora_rank,
    plain_lora=True,
)
