"""DeLoRA: LoRA whose rank-one parts have unit length, times one trained bound of the whole update.

Bini et al., "DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation", ICLR 2025, arXiv 2503.18225.
``dW = (bound / rank) sum_i b_i a_i.T / (|b_i| |a_i|)``, times the column norms of W0: however long training
lasts, ``dW diag(1 / norms)`` cannot exceed the bound in Frobenius norm. The bound is one trained number per
matrix. In PEFT B starts at zero, so that the update is zero, but it has its full length after one step of any
size: choose the bound with care, and smaller for narrow models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.lora import RANK, lora_rank

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting

BOUND = Parameter(
    name="bound", kind="float", default=15.0, least=0.0, source="PEFT (DeloraConfig, delora_lambda)",
    meaning="Bound of the update at the start, in units of the column norms of the base; it is trained.",
)  # fmt: skip
DROPOUT = Parameter(
    name="module_dropout", kind="float", default=0.0, least=0.0, most=0.99,
    source="PEFT (DeloraConfig)", meaning="Dropout on the adapter's input.",
)  # fmt: skip


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put DeLoRA on a model."""
    from peft import DeloraConfig

    def make_config(**given: Any) -> Any:
        return DeloraConfig(
            r=options["rank"],
            delora_lambda=options["bound"],
            module_dropout=options["module_dropout"],
            **given,
        )

    return attach_peft(model, setting, make_config, method=METHOD)


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """A (rank, in), B (out, rank) and the bound."""
    return int(options["rank"]) * (num_out + num_in) + 1


METHOD = Method(
    name="delora",
    title="DeLoRA",
    paper="arXiv 2503.18225",
    source="peft",
    cost="As LoRA, plus the norms of the rows of A and the columns of B in each pass.",
    how_updated="PEFT's merge.",
    parameters=(RANK, BOUND, DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=lora_rank,
    rate=1e-3,
    rate_source="PEFT's documentation of DeLoRA: 10 to 100 times LoRA's, from 1e-3",
    layers=frozenset({"linear"}),
)
