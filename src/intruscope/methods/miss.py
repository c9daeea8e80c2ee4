"""MiSS: one shared matrix (rank, out) is added to every group of ``rank`` adjacent columns of the weights.

Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure", arXiv
2409.15371. The balanced form, which is PEFT's default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.lora import DROPOUT, lora_rank

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


RANK = Parameter(
    name="rank", kind="int", default=64, least=1,
    source="PEFT (MissConfig)", meaning="Columns of the shared matrix; at most the number of inputs of "
    "every target.",
)  # fmt: skip


def num_trainable(num_out: int, _num_in: int, options: Options) -> int:
    """The shared matrix."""
    return int(options["rank"]) * num_out


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put MiSS on a model."""
    from peft import MissConfig

    return attach_peft(
        model,
        setting,
        lambda **given: MissConfig(
            r=options["rank"],
            miss_dropout=options["dropout"],
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="miss",
    title="MiSS",
    paper="arXiv 2409.15371",
    source="peft",
    cost="rank * out parameters per matrix; one thin product in every step.",
    how_updated="The shared matrix, repeated along the inputs: PEFT's merge minus the base.",
    parameters=(RANK, DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=lora_rank,
    layers=frozenset({"linear"}),
    rate=1e-4,
    rate_source="PEFT's method comparison: Llama-3.2-3B on MetaMathQA, AdamW",
)
