"""The links of a chain: an adapter that is trained, and the sum of those before it, which stay.

The links before are kept as factors, in float32, and not added to the base's weight: the sum is the same, the
base stays as it is bit for bit, nothing is lost where it is bfloat16, and a checkpoint holds the whole chain.

Shape suffixes: O out, I in, R rank of one link, P ranks of the links before.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812  # as everywhere
from torch import nn
from transformers import TrainerCallback

from intruscope.methods.attached import ADAPTER
from intruscope.methods.factored_layers import use_factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import LoraConfig
    from torch import Generator, Tensor

    from intruscope.methods.factored_layers import FactoredLinear

Drawn = Literal["A", "B"]


class LinkDown(nn.Linear):
    """A of the link that is trained, and those before it.

    Args:
        in_features: I.
        rank: R.
        num_links: Of the whole chain.
    """

    weight: Tensor

    def __init__(self, in_features: int, rank: int, num_links: int) -> None:
        super().__init__(in_features, rank, bias=False)
        self.before: Tensor
        self.num_before: Tensor
        self.register_buffer("before", torch.zeros((num_links - 1) * rank, in_features))
        self.register_buffer("num_before", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., R + P)."""
        return torch.cat([super().forward(input), F.linear(input, self.before)], dim=-1)

    def dense(self) -> Tensor:
        """(R + P, I)."""
        return torch.cat([self.weight, self.before])


class LinkUp(nn.Linear):
    """B of the link that is trained, and those before it; arguments as of :class:`LinkDown`."""

    weight: Tensor

    def __init__(self, out_features: int, rank: int, num_links: int) -> None:
        super().__init__(rank, out_features, bias=False)
        self.before: Tensor
        self.register_buffer("before", torch.zeros(out_features, (num_links - 1) * rank))

    def forward(self, input: Tensor) -> Tensor:
        """(..., R + P) to (..., O)."""
        rank = self.in_features
        return super().forward(input[..., :rank]) + F.linear(input[..., rank:], self.before)

    def dense(self) -> Tensor:
        """(O, R + P)."""
        return torch.cat([self.weight, self.before], dim=1)


@torch.no_grad()
def start_link(down: LinkDown, up: LinkUp, drawn: Drawn, generator: Generator | None = None) -> None:
    """Draw one factor as LoRA draws A, and set the other to zero."""
    random, zero = (down, up) if drawn == "A" else (up, down)
    start = torch.empty(random.weight.shape)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    random.weight.copy_(start)
    zero.weight.zero_()


def link_factors(
    in_features: int, out_features: int, rank: int, *, num_links: int, drawn: Drawn, frozen: bool
) -> tuple[nn.Module, nn.Module]:
    """Start of one layer: the first link, and none before it."""
    down, up = LinkDown(in_features, rank, num_links), LinkUp(out_features, rank, num_links)
    start_link(down, up, drawn)
    if frozen:
        # A buffer: nothing that switches parameters on and off can ever train it.
        factor = down if drawn == "A" else up
        start = factor.weight.detach()
        del factor.weight
        factor.register_buffer("weight", start)
    return down, up


def use_links(config: LoraConfig, *, num_links: int, drawn: Drawn, frozen: bool = False) -> LoraConfig:
    """Let a config build a chain's layers.

    Args:
        config: PEFT's.
        num_links: Of the whole chain.
        drawn: The factor that is drawn at random at the start of a link; the other is zero there.
        frozen: That factor stays as it is drawn while its link is trained.
    """
    return use_factors(config, partial(link_factors, num_links=num_links, drawn=drawn, frozen=frozen))


@torch.no_grad()
def tie_link(layer: FactoredLinear, drawn: Drawn, generator: Generator) -> None:
    """Put the link that was trained to those before it, and begin the next: the update stays what it was."""
    down, up = cast("LinkDown", layer.lora_A[ADAPTER]), cast("LinkUp", layer.lora_B[ADAPTER])
    rank = up.in_features
    place = slice(int(down.num_before) * rank, (int(down.num_before) + 1) * rank)
    down.before[place] = down.weight
    up.before[:, place] = up.weight
    down.num_before += 1
    start_link(down, up, drawn, generator)


class Links(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Ties a link to the chain each time its share of the optimiser steps is over, and forgets the optimiser.

    Args:
        layers: Of the model, by name.
        num_links: Of the whole chain.
        drawn: The factor that is drawn at random at the start of a link.
        seed: Of the draws: the same after an interruption.
    """

    def __init__(
        self, layers: Mapping[str, FactoredLinear], *, num_links: int, drawn: Drawn, seed: int
    ) -> None:
        self.num_links = num_links
        self._drawn = drawn
        self._seed = seed
        self._layers = dict(layers)

    @property
    def num_tied(self) -> int:
        """Links that are tied to the chain already."""
        first = next(iter(self._layers.values()))
        return int(cast("LinkDown", first.lora_A[ADAPTER]).num_before)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Tie a link where it is time; the last one stays in training."""
        position = self.num_tied + 1
        if position < self.num_links and state.global_step == round(
            position * state.max_steps / self.num_links
        ):
            self.tie(optimizer)

    def tie(self, optimizer: Any = None) -> None:
        """Tie the link and begin the next one.

        Args:
            optimizer: Its moments are dropped, for all that it trains; rates and schedule go on.
        """
        generator = torch.Generator().manual_seed(self._seed + self.num_tied + 1)
        for layer in self._layers.values():
            tie_link(layer, self._drawn, generator)
        if optimizer is not None:
            optimizer.state.clear()
