"""MiCA: LoRA whose B is fixed at the smallest left singular directions of the weights; only A is trained.

"Minor Component Adaptation", arXiv 2604.01694. The counterpart of PiSSA: that starts from the top of the
spectrum, this keeps the update at the bottom. A starts at zero, and the base is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_rank

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


def num_trainable(_num_out: int, num_in: int, options: Options) -> int:
    """A (rank, in)."""
    return int(options["rank"]) * num_in


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put MiCA on a model."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, init_lora_weights="mica", **given),
        method=METHOD,
    )


METHOD = Method(
    name="mica",
    title="MiCA",
    paper="arXiv 2604.01694",
    source="peft",
    cost="rank * in trainable parameters per matrix; an SVD of each matrix at the start.",
    how_updated="(alpha / rank) B A, B fixed.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=lora_rank,
    plain_lora=True,
)
