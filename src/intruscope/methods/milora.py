"""MiLoRA: LoRA that starts as the smallest singular directions of the weights.

Wang et al., "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning", arXiv
2406.09044, section 3. PiSSA's mirror image: of ``W0 = U diag(S) V.T`` the last ``rank`` directions are moved
from the base to the adapter as ``s B0 A0``, with ``B0 = U_m sqrt(S_m / s)`` and ``A0 = sqrt(S_m / s) V_m.T``.
Both factors are trained, so the update starts at the bottom of the spectrum but may leave it. Here the base
stays as it is and ``s (B A - B0 A0)`` is added to it, which is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import ADAPTER, tuner_layers
from intruscope.methods.contract import Method
from intruscope.methods.factored import attach_factored, count_from_start, load_factored
from intruscope.methods.lora import LORA_PARAMETERS, doubled_rank, lora_numbers
from intruscope.methods.targets import weight_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.methods.contract import Options, Setting
    from intruscope.methods.factored import FactoredAttached


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put MiLoRA on a model.

    Raises:
        UsageError: the rank exceeds the smaller side of a matrix.
    """
    from intruscope.linalg.dense import svd
    from intruscope.methods.offset_layers import begin_at

    attached = attach_factored(model, setting, options, method=METHOD, prepare=count_from_start)
    last = slice(-int(options["rank"]), None)
    for layer in tuner_layers(attached.model).values():
        left, values, right = svd(weight_of(layer.get_base_layer()).double())
        begin_at(layer, ADAPTER, left[:, last], values[last], right[:, last])
    return attached


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=count_from_start)


METHOD = Method(
    name="milora",
    title="MiLoRA",
    paper="arXiv 2406.09044",
    source="intruscope",
    cost="As LoRA, with the products of twice the rank; an SVD of each matrix at the start.",
    how_updated="(alpha / rank) (B A - B0 A0).",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=doubled_rank,
    plain_lora=True,
)
