"""OSF: the lower singular directions are trained, orthogonal to the upper ones, which are preserved.

Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning", arXiv
2504.07097. Designed to prevent forgetting: gradients are projected away from the preserved directions. It has
nearly as many trainable parameters as full fine-tuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter

if TYPE_CHECKING:
    from torch import nn

    from intruscope.methods.attached import PeftAttached
    from intruscope.methods.contract import Options, Setting


PRESERVED = Parameter(
    name="preserved", kind="float", default=0.5, least=0.01, most=0.99,
    source="PEFT (OSFConfig)", meaning="Share of the singular directions, from the top, that are preserved.",
)  # fmt: skip


def _trained_rank(num_out: int, num_in: int, options: Options) -> int:
    """Singular directions that are trained."""
    least = min(num_out, num_in)
    return least - int(least * float(options["preserved"]))


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """The lower triplets."""
    return _trained_rank(num_out, num_in, options) * (num_out + num_in + 1)


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """What was there and what it became."""
    return min(2 * _trained_rank(num_out, num_in, options), num_out, num_in)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put OSF on a model."""
    from peft import OSFConfig

    return attach_peft(
        model,
        setting,
        lambda **given: OSFConfig(
            effective_rank=options["preserved"],
            **given,
        ),
        method=METHOD,
    )


METHOD = Method(
    name="osf",
    title="OSF",
    paper="arXiv 2504.07097",
    source="peft",
    cost="An SVD of each matrix at the start; up to as many parameters as full fine-tuning, twice (the "
    "start is kept).",
    how_updated="U S V^T of the lower directions now, minus the same at the start.",
    parameters=(PRESERVED,),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=num_trainable,
    max_rank=max_rank,
    layers=frozenset({"linear"}),
    rate=5e-5,
    rate_source="PEFT's method comparison: Llama-3.2-3B on MetaMathQA, AdamW",
)
