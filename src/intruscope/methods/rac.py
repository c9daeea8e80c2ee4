"""RAC-LoRA: a chain of adapters, each with one random frozen factor and the other trained from zero.

Malinovsky et al., "Randomized Asymmetric Chain of LoRA: The First Meaningful Theoretical Framework for
Low-Rank Adaptation", arXiv 2410.08305. ``dW = (alpha / rank) (B_1 A_1 + ... + B_n A_n)``; for each link A
(or B) is drawn anew, as LoRA draws A, and frozen. The theory is about gradient descent; the experiments use
AdamW. Links are merged as in the method ``chain``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from intruscope.methods.chain import NUM_LINKS, LinksAttached, links_rank
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import attach_factored, load_factored
from intruscope.methods.lora import ALPHA, RANK

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.methods.contract import Options, Setting
    from intruscope.methods.factored import FactoredAttached

FROZEN = Parameter(
    name="frozen", kind="str", default="A", choices=("A", "B"), source="arXiv 2410.08305, which offers both",
    meaning="The factor that is random and frozen in each link.",
)  # fmt: skip


def _frozen(options: Options) -> Literal["A", "B"]:
    return "A" if options["frozen"] == "A" else "B"


class RacAttached(LinksAttached):
    """RAC-LoRA on a model."""

    def __init__(self, model: Any, *, options: Options, **rest: Any) -> None:
        super().__init__(model, options=options, **rest)
        self.drawn = _frozen(options)


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.methods.links_layers import use_links

    return use_links(config, num_links=int(options["num_links"]), drawn=_frozen(options), frozen=True)


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put RAC-LoRA on a model."""
    return attach_factored(model, setting, options, method=METHOD, prepare=_prepare, kind=RacAttached)


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare, kind=RacAttached)


METHOD = Method(
    name="rac",
    title="RAC-LoRA",
    paper="arXiv 2410.08305",
    source="intruscope",
    cost="rank * out (or rank * in) trainable parameters per matrix, about half of LoRA's; the forward pass "
    "goes through the factors of all links.",
    how_updated="(alpha / rank) times the sum of B A over the links.",
    parameters=(RANK, ALPHA, NUM_LINKS, FROZEN),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lambda num_out, num_in, options: (
        int(options["rank"]) * (num_out if options["frozen"] == "A" else num_in)
    ),
    max_rank=links_rank,
    plain_lora=True,
)
