"""Chain of LoRA: train an adapter, merge it, start a new one with a fresh optimiser, and repeat.

Xia et al., "Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning", arXiv
2401.04151. ``dW = (alpha / rank) (B_1 A_1 + ... + B_n A_n)``; every adapter (link) starts as in LoRA. The
steps of the run are divided evenly, and the learning-rate schedule spans all links. A merged link is kept as
two float32 factors, so that a small update is not lost in a low-precision base; the base itself is never
changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import FactoredAttached, attach_factored, load_factored
from intruscope.methods.lora import ALPHA, RANK, lora_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from torch import nn
    from transformers import TrainerCallback

    from intruscope.methods.contract import Options, Setting

NUM_LINKS = Parameter(
    name="num_links", kind="int", default=3, least=1, source="arXiv 2401.04151 (approximately)",
    meaning="Adapters trained one after another; each gets the same share of the steps.",
)  # fmt: skip


class LinksAttached(FactoredAttached):
    """A chain on a model; LoRA starts a link with A drawn and B zero."""

    drawn: Literal["A", "B"] = "A"

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What ties the links."""
        from intruscope.methods.links_layers import Links

        num_links = int(self.options["num_links"])
        return (Links(self._layers, num_links=num_links, drawn=self.drawn, seed=self.seed),)


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.methods.links_layers import use_links

    return use_links(config, num_links=int(options["num_links"]), drawn="A")


def links_rank(num_out: int, num_in: int, options: Options) -> int:
    """Of all links together."""
    return min(int(options["rank"]) * int(options["num_links"]), num_out, num_in)


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put a chain on a model."""
    return attach_factored(model, setting, options, method=METHOD, prepare=_prepare, kind=LinksAttached)


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare, kind=LinksAttached)


METHOD = Method(
    name="chain",
    title="Chain of LoRA",
    paper="arXiv 2401.04151",
    source="intruscope",
    cost="As many trainable parameters as LoRA; the forward pass uses the factors of all links.",
    how_updated="(alpha / rank) times the sum of B A over the links.",
    parameters=(RANK, ALPHA, NUM_LINKS),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=links_rank,
    plain_lora=True,
)
