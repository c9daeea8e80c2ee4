"""OFT: the inputs of each layer are rotated by trained block rotations, which keep the singular values.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv 2306.07280. Since no
singular value changes, this is the natural control for what LoRA adds to a spectrum. By default PEFT
truncates the series of the rotation (``exact = false``), so the result is only nearly a rotation; here the
default is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter, any_rank
from intruscope.methods.loha import MODULE_DROPOUT

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


BLOCK_SIZE = Parameter(
    name="block_size", kind="int", default=32, least=2,
    source="PEFT (OFTConfig)", meaning="Block size; if it does not divide the number of inputs, the nearest "
    "size that does.",
)  # fmt: skip
EXACT = Parameter(
    name="exact", kind="bool", default=True,
    source="ours: PEFT's default is a series of five terms", meaning="Solve for the rotation exactly.",
)  # fmt: skip


def _block_size(num_in: int, options: Options) -> int:
    """PEFT's choice of a block size that divides the inputs."""
    from peft.tuners.oft.layer import OFTLayer

    size = int(options["block_size"])
    if num_in % size == 0:
        return size
    return int(OFTLayer.adjust_oft_parameters(None, num_in, size))


def num_trainable(_num_out: int, num_in: int, options: Options) -> int:
    """A skew-symmetric matrix for each block."""
    size = _block_size(num_in, options)
    return num_in // size * (size * (size - 1) // 2)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put OFT on a model."""
    from peft import OFTConfig

    return attach_peft(
        model,
        setting,
        lambda **given: OFTConfig(
            r=0,
            oft_block_size=options["block_size"],
            use_cayley_neumann=not options["exact"],
            module_dropout=options["module_dropout"],
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="oft",
    title="OFT",
    paper="arXiv 2306.07280",
    source="peft",
    cost="in * (block - 1) / 2 parameters per matrix; the inputs are rotated in every step.",
    how_updated="W0 R^T - W0, R the rotation: PEFT's merge minus the base.",
    parameters=(BLOCK_SIZE, EXACT, MODULE_DROPOUT),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=any_rank,
    layers=frozenset({"linear"}),
    rate=1e-4,
    rate_source="PEFT's method comparison: Llama-3.2-3B on MetaMathQA, AdamW",
)
