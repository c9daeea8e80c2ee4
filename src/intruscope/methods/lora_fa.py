"""LoRA-FA: LoRA with A frozen at its random start; B's step best approximates the full gradient.

Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning", arXiv
2308.03303. The optimiser is PEFT's ``LoraFAOptimizer``: AdamW on ``(rank / alpha)^2 grad_B (A A^T)^-1``,
which it computes in bfloat16 where the machine supports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.methods.attached import ADAPTER, PeftAttached, attach_peft, load_peft
from intruscope.methods.contract import Method
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_rank

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from intruscope.methods.contract import Options, Setting


class LoraFaAttached(PeftAttached):
    """LoRA with A frozen and PEFT's LoRA-FA optimiser."""

    def __init__(self, model: Any, **rest: Any) -> None:
        super().__init__(model, **rest)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW on the projected gradient of B; whatever else is trained by AdamW."""
        from peft.optimizers import create_lorafa_optimizer

        config = self.model.peft_config[ADAPTER]
        optimizer: Optimizer = create_lorafa_optimizer(
            self.model, r=config.r, lora_alpha=config.lora_alpha, lr=lr, weight_decay=weight_decay
        )
        return optimizer


def num_trainable(num_out: int, _num_in: int, options: Options) -> int:
    """B (out, rank)."""
    return int(options["rank"]) * num_out


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put LoRA-FA on a model."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, **given),
        method=METHOD,
        kind=LoraFaAttached,
    )


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved LoRA-FA on its base."""
    return load_peft(model, folder, LoraFaAttached)


METHOD = Method(
    name="lora_fa",
    title="LoRA-FA",
    paper="arXiv 2308.03303",
    source="peft",
    cost="rank * out trainable parameters per matrix; the inputs of A need not be stored for the backward "
    "pass.",
    how_updated="(alpha / rank) B A, A fixed.",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=num_trainable,
    max_rank=lora_rank,
    plain_lora=True,
    own_optimizer=True,
)
