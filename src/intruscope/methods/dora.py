"""DoRA: LoRA changes the direction of each row of the weights, a trained magnitude its length.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353. The tuned weights are ``m (W0 +
s B A) / |W0 + s B A|`` row by row, so the update can have any rank although few parameters are trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import ADAPTER, attach_peft, load_peft, tuner_layers
from intruscope.methods.contract import Method, any_rank
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_numbers
from intruscope.methods.targets import weight_of

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """LoRA's, and a magnitude for each output."""
    return lora_numbers(num_out, num_in, options) + num_out


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put DoRA on a model."""
    attached = attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, use_dora=True, **given),
        method=METHOD,
    )
    _start_at_the_base(attached)
    return attached


def _start_at_the_base(attached: PeftAttached) -> None:
    """PEFT takes the norms of the rows in the base's dtype: in bfloat16 the start would be off by 0.2%."""
    import torch

    for layer in tuner_layers(attached.model).values():
        norms_O = torch.linalg.vector_norm(weight_of(layer.get_base_layer()), dim=1)
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight
        magnitude.data.copy_(norms_O.reshape(magnitude.shape))


METHOD = Method(
    name="dora",
    title="DoRA",
    paper="arXiv 2402.09353",
    source="peft",
    cost="As LoRA, plus the row norms of W0 + s B A, formed as a dense matrix in every forward pass.",
    how_updated="PEFT's merge (magnitudes times normalised rows) minus the base; not s B A.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=any_rank,
    plain_lora=True,
)
