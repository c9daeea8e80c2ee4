"""RandLoRA: a sum of fixed random products, shared by all layers and scaled by trained diagonals.

Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", arXiv 2502.00987. A
higher ``rank`` means fewer and larger products, and so fewer trainable parameters. The random matrices are
saved with the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter, any_rank
from intruscope.methods.lora import DROPOUT

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


RANK = Parameter(
    name="rank", kind="int", default=32, least=1,
    source="PEFT (RandLoraConfig)", meaning="Rank of each random product.",
)  # fmt: skip
ALPHA = Parameter(
    name="alpha", kind="int", default=640, least=1,
    source="PEFT (RandLoraConfig): 20 times the rank", meaning="The update is scaled by alpha / rank.",
)  # fmt: skip


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """Two diagonals for each product."""
    rank, least = int(options["rank"]), min(num_out, num_in)
    num_products = -(-least // rank)
    return num_products * (rank + least)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put RandLoRA on a model."""
    from peft import RandLoraConfig

    return attach_peft(
        model,
        setting,
        lambda **given: RandLoraConfig(
            r=options["rank"],
            randlora_alpha=options["alpha"],
            randlora_dropout=options["dropout"],
            projection_prng_key=setting.seed,
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="randlora",
    title="RandLoRA",
    paper="arXiv 2502.00987",
    source="peft",
    cost="About min(in, out)^2 / rank parameters per matrix; together the products are as large as the "
    "weights.",
    how_updated="(alpha / rank) sum_i B_i L_i A_i G_i, B_i and A_i fixed.",
    parameters=(RANK, ALPHA, DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=any_rank,
)
