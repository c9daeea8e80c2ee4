"""SoRA's gated factor, and the proximal steps that make gates exactly zero.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from intruscope.methods.factored_layers import PlainFactor, use_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import LoraConfig
    from torch import Tensor
    from torch.optim import Optimizer

Prox = Literal["paper", "official"]


class GatedDown(nn.Linear):
    """``gate * (A x)``; the gate starts as standard normal numbers."""

    def __init__(self, in_features: int, rank: int) -> None:
        super().__init__(in_features, rank, bias=False)  # starts as LoRA's A
        self.gate = nn.Parameter(torch.randn(rank))

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., R)."""
        return super().forward(input) * self.gate

    def dense(self) -> Tensor:
        """(R, I): the rows of A times their gates."""
        return self.gate.unsqueeze(-1) * self.weight


def gated_factors(in_features: int, out_features: int, rank: int) -> tuple[nn.Module, nn.Module]:
    """Start of one layer: B zero."""
    up = PlainFactor(rank, out_features)
    nn.init.zeros_(up.weight)
    return GatedDown(in_features, rank), up


def use_gates(config: LoraConfig) -> LoraConfig:
    """Let a config build SoRA's layers."""
    return use_factors(config, gated_factors)


@torch.no_grad()
def shrink(gate: Tensor, threshold: float, prox: Prox) -> None:
    """Take a threshold off the size of each gate, in place.

    Args:
        gate: Any shape.
        threshold: xi of the paper, at least 0.
        prox: ``paper`` is the soft threshold, sign(g) max(|g| - xi, 0). ``official`` is what the authors'
            program does: gates above xi are made smaller by xi, and whatever is then below xi becomes zero,
            so that all below 2 xi go at once (and a gate of exactly xi stays).
    """
    if prox == "paper":
        gate.copy_(torch.nn.functional.softshrink(gate, threshold))
        return
    smaller = torch.where(gate.abs() > threshold, gate - threshold * gate.sign(), gate)
    gate.copy_(torch.where(smaller.abs() < threshold, 0.0, smaller))


def add_gate_steps(
    optimizer: Optimizer, gates: Sequence[nn.Parameter], *, threshold: float, prox: Prox, l1: float
) -> None:
    """Let every step of an optimiser shrink the gates after it, and push them by an L1 term before it.

    Args:
        optimizer: Over the gates, among others.
        gates: All gates of the model.
        threshold: As of :func:`shrink`.
        prox: As of :func:`shrink`.
        l1: Weight of the mean absolute gate in the loss. It is added as its gradient, so that a loss that is
            reported is that of the task.
    """
    num_gates = sum(gate.numel() for gate in gates)

    def push(*_: Any) -> None:
        for gate in gates:
            if gate.grad is not None:
                gate.grad.add_(gate.detach().sign(), alpha=l1 / num_gates)

    def pull(*_: Any) -> None:
        for gate in gates:
            shrink(gate, threshold, prox)

    if l1:
        optimizer.register_step_pre_hook(push)
    optimizer.register_step_post_hook(pull)


def kept_ranks(down_RI: Tensor, up_OR: Tensor, gate_R: Tensor) -> tuple[Tensor, Tensor]:
    """The factors without the ranks whose gate is zero; a rank of zeros where none is left: PEFT has no 0."""
    kept = gate_R != 0
    if not bool(kept.any()):
        return torch.zeros_like(down_RI[:1]), torch.zeros_like(up_OR[:, :1])
    return down_RI[kept], up_OR[:, kept]
