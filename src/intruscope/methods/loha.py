"""LoHa: the update is the elementwise product of two low-rank matrices, of rank up to ``rank^2``.

Hyeon-Woo, Ye-Bin and Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated
Learning", arXiv 2108.06098; as LyCORIS uses it (arXiv 2309.14859).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.lora import ALPHA as LORA_ALPHA

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


ALPHA = replace(LORA_ALPHA, source="PEFT (LoHaConfig)")
RANK = Parameter(
    name="rank", kind="int", default=8, least=1,
    source="PEFT (LoHaConfig)", meaning="Rank of each of the two products.",
)  # fmt: skip
MODULE_DROPOUT = Parameter(
    name="module_dropout", kind="float", default=0.0, least=0.0, most=0.99,
    source="PEFT", meaning="Probability of skipping a layer's update in a step.",
)  # fmt: skip


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """Two low-rank products."""
    return 2 * int(options["rank"]) * (num_out + num_in)


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """Of an elementwise product: the ranks multiply."""
    return min(int(options["rank"]) ** 2, num_out, num_in)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put LoHa on a model."""
    from peft import LoHaConfig

    return attach_peft(
        model,
        setting,
        lambda **given: LoHaConfig(
            r=options["rank"],
            alpha=options["alpha"],
            module_dropout=options["module_dropout"],
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="loha",
    title="LoHa",
    paper="arXiv 2108.06098",
    source="peft",
    cost="Twice LoRA's parameters; the dense update is formed in every step.",
    how_updated="(alpha / rank) (B1 A1) * (B2 A2), elementwise.",
    parameters=(RANK, ALPHA, MODULE_DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=max_rank,
    layers=frozenset({"linear"}),
)
