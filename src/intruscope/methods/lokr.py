"""LoKr: the update is a Kronecker product of a small matrix and a low-rank one.

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", arXiv
2309.14859 (LyCORIS). PEFT trains the second factor as a full matrix if ``rank`` is at least half its larger
side.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.loha import MODULE_DROPOUT
from intruscope.methods.lora import ALPHA as LORA_ALPHA
from intruscope.methods.lora import RANK as LORA_RANK

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


ALPHA = replace(LORA_ALPHA, source="PEFT (LoKrConfig)")
RANK = replace(LORA_RANK, source="PEFT (LoKrConfig)", meaning="Rank of the larger factor.")
FACTOR = Parameter(
    name="factor", kind="int", default=-1, least=-1,
    source="PEFT (LoKrConfig)", meaning="Size of the small factor; -1 takes the divisor nearest to the "
    "square root.",
)  # fmt: skip


def _shapes(num_out: int, num_in: int, options: Options) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the small factor and the large one, each (out, in)."""
    from peft.tuners.lokr.layer import factorization

    (small_out, large_out), (small_in, large_in) = (
        factorization(size, int(options["factor"])) for size in (num_out, num_in)
    )
    return (small_out, small_in), (large_out, large_in)


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """The small factor, and the other whole or as a product."""
    small, large = _shapes(num_out, num_in, options)
    rank = int(options["rank"])
    whole = rank >= max(large) / 2
    return math.prod(small) + (math.prod(large) if whole else rank * sum(large))


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """Ranks of the factors of a Kronecker product multiply."""
    small, large = _shapes(num_out, num_in, options)
    rank = int(options["rank"])
    return min(small) * min(large if rank >= max(large) / 2 else (*large, rank))


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put LoKr on a model."""
    from peft import LoKrConfig

    return attach_peft(
        model,
        setting,
        lambda **given: LoKrConfig(
            r=options["rank"],
            alpha=options["alpha"],
            decompose_factor=options["factor"],
            module_dropout=options["module_dropout"],
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="lokr",
    title="LoKr",
    paper="arXiv 2309.14859",
    source="peft",
    cost="Fewer parameters than LoRA at the same rank; the dense update is formed in every step.",
    how_updated="(alpha / rank) C kron (B A).",
    parameters=(RANK, ALPHA, FACTOR, MODULE_DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=max_rank,
    layers=frozenset({"linear"}),
)
