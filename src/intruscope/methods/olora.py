"""OLoRA: LoRA that starts from the QR decomposition of the weights, B with orthonormal columns.

Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv 2406.01775. The base is
changed at the start, as by PiSSA, and what is saved is an ordinary LoRA of twice the rank against the
unchanged base. PEFT's start ignores that Conv1D stores its weights transposed, so only Linear layers
are supported.
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
    """Put OLoRA on a model, whose weights are changed."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, init_lora_weights="olora", **given),
        method=METHOD,
    )


METHOD = Method(
    name="olora",
    title="OLoRA",
    paper="arXiv 2406.01775",
    source="peft",
    cost="As LoRA; a QR decomposition of each matrix at the start.",
    how_updated="The merged weights minus a copy of the weights from before the start.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=lora_numbers,
    max_rank=doubled_rank,
    plain_lora=True,
    departures=frozenset({"moves_base"}),
    layers=frozenset({"linear"}),
)
