"""VeRA: two fixed random matrices shared by all layers; each layer trains two vectors that scale them.

Kopiczko, Blankevoort and Asano, "VeRA: Vector-based Random Matrix Adaptation", arXiv 2310.11454. The update
is ``diag(b) B diag(d) A``, B and A cut to the layer's shape; b starts at zero. The two matrices are saved
with the adapter.
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
    name="rank", kind="int", default=256, least=1,
    source="PEFT (VeraConfig); arXiv 2310.11454, RoBERTa-large", meaning="Columns of the shared matrices.",
)  # fmt: skip
D_INITIAL = Parameter(
    name="d_initial", kind="float", default=0.1, least=0.0,
    source="PEFT (VeraConfig); arXiv 2310.11454", meaning="Initial value of d.",
)  # fmt: skip


def num_trainable(num_out: int, _num_in: int, options: Options) -> int:
    """The two vectors: d (rank) and b (out)."""
    return int(options["rank"]) + num_out


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put VeRA on a model."""
    from peft import VeraConfig

    return attach_peft(
        model,
        setting,
        lambda **given: VeraConfig(
            r=options["rank"],
            d_initial=options["d_initial"],
            vera_dropout=options["dropout"],
            projection_prng_key=setting.seed,
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="vera",
    title="VeRA",
    paper="arXiv 2310.11454",
    source="peft",
    cost="rank + out parameters per matrix; products as large as LoRA's at this, much higher, rank.",
    how_updated="diag(b) B diag(d) A.",
    parameters=(RANK, D_INITIAL, DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=lora_rank,
    rate=1e-2,
    rate_source="PEFT's example for classification with RoBERTa-base: 2e-2 for the adapter and 1e-2 for "
    "the head; here both have the smaller",
)
