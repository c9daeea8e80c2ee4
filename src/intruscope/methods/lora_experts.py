"""Mixture of LoRA experts, each trained with a Riemannian preconditioner.

Sun et al., "A Stronger Mixture of Low-Rank Experts for Fine-Tuning Foundation Models", ICML 2025, arXiv
2502.15828. ``y = W0 x + s sum_n g_n B_n A_n x``: g is the softmax of a linear router, cut to the largest few
and renormalised; s = alpha / rank. The gradient of an expert's factors is weighted by the square root of its
gate instead of the gate, and before each step ``grad A <- (B^T B + d)^-1 grad A``, ``grad B <- grad B (A A^T
+ d)^-1``. Differs from the authors' program in two ways: the gradient of the layer's input is exact, and a
factor that is zero does not multiply the other's gradient by 1 / d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import ADAPTER
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import FactoredAttached, attach_factored, load_factored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from intruscope.methods.contract import Options, Setting

_PROGRAM = "the authors' program (train_llama.py)"
RANK = Parameter(
    name="rank", kind="int", default=4, least=1, source=_PROGRAM, meaning="Rank of each expert.",
)  # fmt: skip
ALPHA = Parameter(
    name="alpha", kind="float", default=16.0, least=0.0, source=_PROGRAM,
    meaning="The mixture is scaled by alpha / rank.",
)  # fmt: skip
DROPOUT = Parameter(
    name="dropout", kind="float", default=0.05, least=0.0, most=0.99, source=_PROGRAM,
    meaning="Dropout on the experts' input; the router's input is not dropped.",
)  # fmt: skip
NUM_EXPERTS = Parameter(
    name="num_experts", kind="int", default=20, least=1, source=_PROGRAM, meaning="Number of experts in "
    "each layer.",
)  # fmt: skip
NUM_ACTIVE = Parameter(
    name="num_active", kind="int", default=10, least=1, source=_PROGRAM,
    meaning="Number of experts per token; at most num_experts.",
)  # fmt: skip
DAMPING = Parameter(
    name="damping", kind="float", default=1e-6, least=1e-12, source="arXiv 2502.15828",
    meaning="Added to the preconditioner's Gram matrix (d).",
)  # fmt: skip
ROUTER_RATE = Parameter(
    name="router_rate", kind="float", default=0.003, least=0.0, source=_PROGRAM + ": 3e-8 beside 1e-5",
    meaning="Learning rate of the router divided by that of the experts.",
)  # fmt: skip


class ExpertsAttached(FactoredAttached):
    """A mixture of experts on a model."""

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW with preconditioned gradients; the router at its own rate, it and vectors without decay."""
        import torch

        from intruscope.methods.experts_layers import add_preconditioner

        trained = self.trainable()
        routers = [p for name, p in trained if name.endswith(".router")]
        others = [p for name, p in trained if not name.endswith(".router")]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim < 2]},
            {"params": routers, "lr": lr * float(self.options["router_rate"])},
        ]
        given = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(given, lr=lr, weight_decay=0.0)
        pairs = [
            (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for layer in self._layers.values()
        ]
        add_preconditioner(optimizer, pairs, float(self.options["damping"]))
        return optimizer

    def expert_updates(self, name: str) -> Tensor:
        """What each expert would add to a matrix if its gate were one: (experts, out, in), float32."""
        layer = self._layer(name)
        downs, ups = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
        updates: Tensor = float(layer.scaling[ADAPTER]) * (ups.float() @ downs.float())
        return updates

    def mean_update(self, name: str, batches: Iterable[Mapping[str, Any]]) -> Tensor:
        """The update of a matrix on the average over the tokens of some batches: (out, in), float32."""
        import torch

        layer = self._layer(name)
        seen: list[Tensor] = []

        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach()
            gates = layer.lora_A[ADAPTER].gates(x.to(layer.lora_A[ADAPTER].weight.dtype))
            seen.append(gates.flatten(0, -2).float())

        handle, training = layer.register_forward_pre_hook(hook), self.model.training
        try:
            self.model.eval()
            with torch.no_grad():
                for batch in batches:
                    self.model(**batch)
        finally:
            handle.remove()
            self.model.train(training)
        return torch.einsum("n,noi->oi", torch.cat(seen).mean(0), self.expert_updates(name))

    def update(self, name: str) -> Tensor:
        """Refused: it depends on the input.

        Raises:
            UsageError: always.
        """
        from intruscope.methods.experts_layers import no_static_update

        self._layer(name)
        raise no_static_update()

    def merged(self) -> nn.Module:
        """Refused, as :meth:`update`.

        Raises:
            UsageError: always.
        """
        from intruscope.methods.experts_layers import no_static_update

        raise no_static_update()

    def _write(self, folder: Path) -> None:
        """What :func:`load` needs; no ordinary LoRA computes this."""
        self._write_state(folder)


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.errors import UsageError
    from intruscope.methods.experts_layers import use_experts

    num_experts, num_active = int(options["num_experts"]), int(options["num_active"])
    if num_active > num_experts:
        raise UsageError(
            f"num_active is {num_active}, and there are only {num_experts} experts",
            remedy="lower num_active or raise num_experts",
            tensor="num_active",
        )
    return use_experts(config, num_experts=num_experts, num_active=num_active)


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put a mixture of experts on a model."""
    return attach_factored(model, setting, options, method=METHOD, prepare=_prepare, kind=ExpertsAttached)


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to run or to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare, kind=ExpertsAttached)


def _numbers(num_out: int, num_in: int, options: Options) -> int:
    return int(options["num_experts"]) * (int(options["rank"]) * (num_out + num_in) + num_in)


METHOD = Method(
    name="lora_experts",
    title="Mixture of LoRA experts, Riemannian",
    paper="arXiv 2502.15828",
    source="intruscope",
    cost="num_experts times LoRA of one expert's rank, a router, and two small solves per expert and step; "
    "all experts are computed for every token.",
    how_updated="There is none: it depends on the input. Each expert's, and their mean over given batches.",
    parameters=(RANK, ALPHA, DROPOUT, NUM_EXPERTS, NUM_ACTIVE, DAMPING, ROUTER_RATE),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=_numbers,
    max_rank=lambda num_out, num_in, options: min(
        int(options["rank"]) * int(options["num_active"]), num_out, num_in
    ),
    mergeable=False,
    own_optimizer=True,
    departures=frozenset({"no_static_update"}),
)
