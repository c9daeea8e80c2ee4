"""A mixture of LoRA experts: routing, the rescaled gradient, and the preconditioner of its optimiser.

Shape suffixes: T tokens, O out, I in, N experts, R rank of one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from intruscope.errors import UsageError
from intruscope.methods.factored_layers import FactoredLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import LoraConfig
    from torch import Tensor
    from torch.optim import Optimizer


class ExpertDowns(nn.Module):
    """The first factor of each expert, and the router.

    Args:
        in_features: I.
        rank: R.
        num_experts: N.
        num_active: Experts that a token goes through.
    """

    def __init__(self, in_features: int, rank: int, *, num_experts: int, num_active: int) -> None:
        super().__init__()
        self.num_active = num_active
        self.weight = nn.Parameter(torch.empty(num_experts, rank, in_features))
        self.router = nn.Parameter(torch.empty(num_experts, in_features))
        for matrix in (*self.weight, self.router):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def gates(self, x: Tensor) -> Tensor:
        """Weight of each expert for each token, (..., I) to (..., N): zero but for the active, sum one."""
        shares = torch.softmax(nn.functional.linear(x, self.router), dim=-1)
        chosen = shares.topk(self.num_active, dim=-1).indices
        kept = torch.zeros_like(shares).scatter(-1, chosen, shares.gather(-1, chosen))
        return kept / kept.sum(-1, keepdim=True)


class ExpertUps(nn.Module):
    """The second factor of each expert, zero at the start."""

    def __init__(self, out_features: int, rank: int, *, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, out_features, rank))


class Mixture(torch.autograd.Function):
    """``sum_n gate_n B_n A_n x``, where A and B get their gradient by the root of the gate.

    The gradients of the input and of the gates are the true ones.
    """

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, gates_TN: Tensor, down_NRI: Tensor, up_NOR: Tensor) -> Tensor:
        """The (T, O) output."""
        with torch.autocast(x_TI.device.type, enabled=False):
            hidden_TNR = torch.einsum("ti,nri->tnr", x_TI, down_NRI)
            ctx.save_for_backward(x_TI, gates_TN, down_NRI, up_NOR, hidden_TNR)
            return torch.einsum("tnr,nor->to", gates_TN.unsqueeze(-1) * hidden_TNR, up_NOR)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the four inputs."""
        x_TI, gates_TN, down_NRI, up_NOR, hidden_TNR = ctx.saved_tensors
        root_TN1 = gates_TN.sqrt().unsqueeze(-1)
        back_TNR = torch.einsum("to,nor->tnr", grad_TO, up_NOR)
        return (
            torch.einsum("tnr,nri->ti", gates_TN.unsqueeze(-1) * back_TNR, down_NRI),
            (back_TNR * hidden_TNR).sum(-1),
            torch.einsum("tnr,ti->nri", root_TN1 * back_TNR, x_TI),
            torch.einsum("to,tnr->nor", grad_TO, root_TN1 * hidden_TNR),
        )


class ExpertsLinear(FactoredLinear):
    """``base(x) + scaling * sum_n gate_n(x) B_n A_n x``: nothing that a matrix could replace."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., I) to (..., O)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for adapter in self.active_adapters:
            downs, ups = self.lora_A[adapter], self.lora_B[adapter]
            inputs = self._cast_input_dtype(x, downs.weight.dtype)
            gates = downs.gates(inputs)
            flat = self.lora_dropout[adapter](inputs).flatten(0, -2)
            mixed = Mixture.apply(flat, gates.flatten(0, -2), downs.weight, ups.weight)  # type: ignore[no-untyped-call]
            result = result + (self.scaling[adapter] * mixed).view(result.shape).to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Refused.

        Raises:
            UsageError: always.
        """
        raise no_static_update()


def no_static_update() -> UsageError:
    """Why there is no update to give, and what there is instead."""
    return UsageError(
        "the update of a mixture of experts depends on the input, so there is no single update",
        remedy="use expert_updates() or mean_update(), or train with another method",
    )


def expert_factors(
    in_features: int, out_features: int, rank: int, *, num_experts: int, num_active: int
) -> tuple[nn.Module, nn.Module]:
    """Start of one layer."""
    downs = ExpertDowns(in_features, rank, num_experts=num_experts, num_active=num_active)
    return downs, ExpertUps(out_features, rank, num_experts=num_experts)


def use_experts(config: LoraConfig, *, num_experts: int, num_active: int) -> LoraConfig:
    """Let a config build the mixture's layers."""
    make = partial(expert_factors, num_experts=num_experts, num_active=num_active)
    layer = partial(ExpertsLinear, make=make)
    config._register_custom_module({nn.Linear: layer, Conv1D: layer})
    return config


@torch.no_grad()
def precondition(down: nn.Parameter, up: nn.Parameter, damping: float) -> None:
    """Turn the gradients of all experts into Riemannian ones, in place, each by the factors before the step.

    ``grad A <- (B^T B + damping)^-1 grad A`` and ``grad B <- grad B (A A^T + damping)^-1``. Where a factor is
    zero, or so small that the damping would decide alone and multiply by its inverse (a million), the other
    factor keeps its plain gradient.

    Args:
        down: (N, R, I).
        up: (N, O, R).
        damping: Above 0.
    """
    wide = torch.promote_types(down.dtype, torch.float32)
    down_NRI, up_NOR = down.detach().to(wide), up.detach().to(wide)
    for parameter, gram_NRR in ((down, up_NOR.mT @ up_NOR), (up, down_NRI @ down_NRI.mT)):
        if parameter.grad is None:
            continue
        plain = parameter.grad.to(wide)
        rows = plain if parameter is down else plain.mT
        eye_RR = torch.eye(gram_NRR.shape[-1], dtype=wide, device=gram_NRR.device)
        solved = torch.linalg.solve(gram_NRR + damping * eye_RR, rows)
        known = gram_NRR.diagonal(dim1=-2, dim2=-1).mean(-1) > damping
        better = solved if parameter is down else solved.mT
        parameter.grad.copy_(torch.where(known[:, None, None], better, plain))


def add_preconditioner(
    optimizer: Optimizer, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]], damping: float
) -> None:
    """Let every step of an optimiser precondition the gradients of these (down, up) pairs before it."""

    def before(*_: Any) -> None:
        for down, up in pairs:
            precondition(down, up, damping)

    optimizer.register_step_pre_hook(before)
