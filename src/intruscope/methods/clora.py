"""CLoRA: LoRA with a penalty that pushes fixed random directions into the null space of its factors.

Lu et al., "Controlled Low-Rank Adaptation with Subspace Regularization for Continued Training on Large
Language Models", ACL 2025, arXiv 2410.16801. The loss gains
``weight * (|A P|^2 + |Q.T B|^2) / 2``, summed over the matrices, with orthonormal columns P (in, k) and Q
(out, k) that are drawn once: the more of an input lies in the null space, the less its output changes. The
half and the weight are those of the authors' program, which takes k = 512 at a width of 4,096. The penalty is
added as its gradient in the optimiser's step, so that the reported loss is that of the task; gradients are
clipped before that. P and Q are drawn again from the seed and not saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.methods.attached import ADAPTER, PeftAttached, adamw, attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import read_options, write_options
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_numbers, lora_rank

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from intruscope.methods.contract import Options, Setting

WEIGHT = Parameter(
    name="weight", kind="float", default=1.0, least=0.0, source="the authors' program (clora.py, lambda_)",
    meaning="Weight of the penalty in the loss.",
)  # fmt: skip
FRACTION = Parameter(
    name="fraction", kind="float", default=0.125, least=0.0, most=1.0,
    source="the authors' program (README: 512 of 4,096)",
    meaning="Number of the directions as a fraction of each side, at least one.",
)  # fmt: skip


class CloraAttached(PeftAttached):
    """LoRA with a penalty on fixed directions.

    Args:
        model: As the base class.
        options: The method's.
        seed: From which the directions are drawn.
        rest: As the base class.
    """

    def __init__(self, model: Any, *, options: Options, seed: int = 0, **rest: Any) -> None:
        super().__init__(model, **rest)
        self._options = options
        self._seed = seed

    def directions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """P (in, k) and Q (out, k) of each matrix: orthonormal columns, float32, on the CPU."""
        import torch

        generator = torch.Generator().manual_seed(self._seed)

        def drawn(size: int) -> Tensor:
            count = max(1, round(float(self._options["fraction"]) * size))
            return torch.nn.init.orthogonal_(torch.empty(size, count), generator=generator)

        layers = self._layers.items()
        return {name: (drawn(layer.in_features), drawn(layer.out_features)) for name, layer in layers}

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW whose gradients have that of the penalty added before each step."""
        optimizer = adamw(self.trainable(), lr=lr, weight_decay=weight_decay)
        weight = float(self._options["weight"])
        factors = []
        for name, (down_IK, up_OK) in self.directions().items():
            layer = self._layers[name]
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            factors.append((a, down_IK.to(a), b, up_OK.to(b)))

        def push(*_: Any) -> None:
            for a_RI, down_IK, b_OR, up_OK in factors:
                if a_RI.grad is not None:
                    a_RI.grad.add_((a_RI.detach() @ down_IK) @ down_IK.T, alpha=weight)
                if b_OR.grad is not None:
                    b_OR.grad.add_(up_OK @ (up_OK.T @ b_OR.detach()), alpha=weight)

        optimizer.register_step_pre_hook(push)
        return optimizer

    def _write(self, folder: Path) -> None:
        """With options and seed beside it, which PEFT's config does not hold."""
        super()._write(folder)
        write_options(folder, METHOD.name, self._options, self._seed)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put CLoRA on a model."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, **given),
        method=METHOD,
        kind=CloraAttached,
        options=options,
        seed=setting.seed,
    )


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved one on its base, to train on."""
    options, seed = read_options(folder, METHOD)
    return load_peft(model, folder, CloraAttached, options=options, seed=seed)


METHOD = Method(
    name="clora",
    title="CLoRA",
    paper="arXiv 2410.16801",
    source="intruscope",
    cost="As LoRA, plus two thin products per factor in each step, and fraction * (in^2 + out^2) fixed "
    "numbers per matrix.",
    how_updated="(alpha / rank) B A.",
    parameters=(*LORA_PARAMETERS, WEIGHT, FRACTION),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=lora_rank,
    plain_lora=True,
    own_optimizer=True,
)
