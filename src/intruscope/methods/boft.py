"""BOFT: block rotations as in OFT, plus a trained scale for each output.

Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", arXiv 2311.06243. One
butterfly factor: PEFT falls back to one wherever its CUDA extension cannot be built, so more of them would
give a different method on a different machine. Unlike OFT, the scales change singular values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter, any_rank

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


BLOCK_SIZE = Parameter(
    name="block_size", kind="int", default=4, least=2,
    source="PEFT (BOFTConfig)", meaning="Block size; must divide the number of inputs of every target.",
)  # fmt: skip


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """A matrix for each block, of which the skew-symmetric part counts, and the scales."""
    return num_in * int(options["block_size"]) + num_out


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put BOFT on a model."""
    from peft import BOFTConfig

    return attach_peft(
        model,
        setting,
        lambda **given: BOFTConfig(
            boft_block_size=options["block_size"],
            boft_n_butterfly_factor=1,
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="boft",
    title="BOFT",
    paper="arXiv 2311.06243",
    source="peft",
    cost="in * block + out parameters per matrix; the rotated weights are formed as a dense matrix in every "
    "step.",
    how_updated="diag(s) W0 R^T - W0: PEFT's merge minus the base.",
    parameters=(BLOCK_SIZE,),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=any_rank,
    layers=frozenset({"linear"}),
    rate=1e-4,
    rate_source="PEFT's method comparison: Llama-3.2-3B on MetaMathQA, AdamW",
)
