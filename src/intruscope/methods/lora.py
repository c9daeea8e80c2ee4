"""LoRA: the update is the product of two thin matrices, ``dW = (alpha / rank) B A``.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. A (rank, in) starts
random (Kaiming uniform) and B (out, rank) at zero, so training starts from the base model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter

if TYPE_CHECKING:
    from typing import Any

    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting

RANK = Parameter(
    name="rank", kind="int", default=8, least=1,
    source="arXiv 2106.09685, Table 9 (RoBERTa); PEFT", meaning="Rank of the update of each matrix.",
)  # fmt: skip
ALPHA = Parameter(
    name="alpha", kind="float", default=8.0, least=0.0,
    source="arXiv 2106.09685, Table 9 (RoBERTa); PEFT", meaning="The update is scaled by alpha / rank.",
)  # fmt: skip
DROPOUT = Parameter(
    name="dropout", kind="float", default=0.0, least=0.0, most=0.99,
    source="PEFT", meaning="Dropout on the adapter's input.",
)  # fmt: skip
LORA_PARAMETERS = (RANK, ALPHA, DROPOUT)


def lora_config(options: Options, **given: Any) -> Any:
    """PEFT's LoraConfig from rank, alpha and dropout; ``given`` wins."""
    from peft import LoraConfig

    return LoraConfig(
        **{
            "r": options["rank"],
            "lora_alpha": options["alpha"],
            "lora_dropout": options["dropout"],
            **given,
        }
    )


def lora_numbers(num_out: int, num_in: int, options: Options) -> int:
    """A (rank, in) and B (out, rank)."""
    return int(options["rank"]) * (num_out + num_in)


def lora_rank(num_out: int, num_in: int, options: Options) -> int:
    """The rank, or the matrix's own where that is less."""
    return min(int(options["rank"]), num_out, num_in)


def doubled_rank(num_out: int, num_in: int, options: Options) -> int:
    """Where the start takes something out of the base: that, and what was trained in its place."""
    return min(2 * int(options["rank"]), num_out, num_in)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put LoRA on a model."""
    return attach_peft(model, setting, lambda **given: lora_config(options, **given), method=METHOD)


METHOD = Method(
    name="lora",
    title="LoRA",
    paper="arXiv 2106.09685",
    source="peft",
    cost="rank * (in + out) parameters per matrix; two thin products in each forward and backward pass.",
    how_updated="(alpha / rank) B A.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=lora_numbers,
    max_rank=lora_rank,
    plain_lora=True,
)
