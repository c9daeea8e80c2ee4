"""PiSSA: LoRA that starts as the largest singular directions of the weights, which are removed from the base.

Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
arXiv 2404.02948. The base is changed at the start so that base and factors together equal the original
weights; the update is measured against those. It is saved as an ordinary LoRA of twice the rank against the
unchanged base: ``s (B A - B0 A0)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method
from intruscope.methods.lora import LORA_PARAMETERS, doubled_rank, lora_config, lora_numbers

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put PiSSA on a model, whose weights are changed."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, init_lora_weights="pissa", **given),
        method=METHOD,
    )


METHOD = Method(
    name="pissa",
    title="PiSSA",
    paper="arXiv 2404.02948",
    source="peft",
    cost="As LoRA; an SVD of each matrix at the start.",
    how_updated="The merged weights minus a copy of the weights from before the start.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=lora_numbers,
    max_rank=doubled_rank,
    plain_lora=True,
    departures=frozenset({"moves_base"}),
)
