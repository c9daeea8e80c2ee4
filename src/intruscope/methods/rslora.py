"""Rank-stabilised LoRA: LoRA scaled by ``alpha / sqrt(rank)``, so that high ranks learn as fast as low ones.

Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv 2312.03732.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_numbers, lora_rank

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put rank-stabilised LoRA on a model."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, use_rslora=True, **given),
        method=METHOD,
    )


METHOD = Method(
    name="rslora",
    title="rsLoRA",
    paper="arXiv 2312.03732",
    source="peft",
    cost="As LoRA.",
    how_updated="(alpha / sqrt(rank)) B A.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=lora_numbers,
    max_rank=lora_rank,
    plain_lora=True,
)
