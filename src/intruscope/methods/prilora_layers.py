"""PRILoRA's pruning: running norms of the inputs, and zeros where they and A say that little is lost.

Shape suffixes: I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from intruscope.methods.attached import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn


class Pruning(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Watches the inputs of layers in training, and prunes their A every some optimiser steps.

    Args:
        layers: PEFT's LoRA layers by name.
        every: Optimiser steps between prunings.
        fraction: Share of each row that becomes zero.
        memory: Share of the running norm that stays at each forward pass.
    """

    def __init__(self, layers: Mapping[str, Any], *, every: int, fraction: float, memory: float) -> None:
        self.every = every
        self.fraction = fraction
        self.norms: dict[str, Tensor] = {}
        self._layers = dict(layers)
        for name, layer in layers.items():
            layer.register_forward_pre_hook(_watch(self.norms, name, memory))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Prune where it is time."""
        if state.global_step % self.every == 0:
            self.prune()

    def prune(self) -> None:
        """Prune every A whose inputs were seen; of several processes, by the mean of what they saw."""
        for name, norms_I in self.norms.items():
            prune_rows(self._layers[name].lora_A[ADAPTER].weight, _over_processes(norms_I), self.fraction)


def _watch(
    norms: dict[str, Tensor], name: str, memory: float
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    # A function, not a method: copies of a layer then share the norms instead of copying all layers.
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            now_I = feature_norms(inputs[0])
            before_I = norms.get(name)
            norms[name] = now_I if before_I is None else memory * before_I + (1 - memory) * now_I

    return hook


def _over_processes(norms_I: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return norms_I
    mean_I = norms_I / torch.distributed.get_world_size()
    torch.distributed.all_reduce(mean_I)
    return mean_I


@torch.no_grad()
def feature_norms(x: Tensor) -> Tensor:
    """Root mean square of each input feature over all tokens: (..., I) to (I,), float32 or wider."""
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    return wide.flatten(0, -2).square().mean(0).sqrt()


@torch.no_grad()
def prune_rows(down_RI: Tensor, norms_I: Tensor, fraction: float) -> None:
    """Set the share of each row that has the least |A_ij| norm_j to zero, in place (rounded down)."""
    importance_RI = down_RI.abs() * norms_I
    num_pruned = int(fraction * down_RI.shape[1])
    least_RP = importance_RI.topk(num_pruned, dim=1, largest=False).indices
    down_RI.scatter_(1, least_RP, 0.0)
