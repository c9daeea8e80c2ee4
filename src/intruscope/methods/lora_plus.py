"""LoRA+: LoRA with a higher learning rate for B than for A.

Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv 2402.12354. The optimiser is
PEFT's ``create_loraplus_optimizer``; the learning rate that you set is A's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.methods.attached import PeftAttached, attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import read_options, write_options
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_numbers, lora_rank

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from intruscope.methods.contract import Options, Setting

RATIO = Parameter(
    name="ratio", kind="float", default=16.0, least=1.0,
    source="arXiv 2402.12354 (recommended, 2^4)", meaning="Learning rate of B divided by that of A.",
)  # fmt: skip


class LoraPlusAttached(PeftAttached):
    """LoRA with PEFT's LoRA+ optimiser.

    Args:
        model: As the base class.
        options: The method's.
        seed: Of the start.
        rest: As the base class.
    """

    def __init__(self, model: Any, *, options: Options, seed: int = 0, **rest: Any) -> None:
        super().__init__(model, **rest)
        self._options = options
        self._seed = seed

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW, B at ``ratio`` times the rate of A."""
        import torch
        from peft.optimizers import create_loraplus_optimizer

        optimizer: Optimizer = create_loraplus_optimizer(
            self.model,
            torch.optim.AdamW,
            lr=lr,
            loraplus_lr_ratio=self._options["ratio"],
            loraplus_weight_decay=weight_decay,
        )
        # Without its empty groups (embeddings), which would show as learning rates of nothing.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _write(self, folder: Path) -> None:
        """With the ratio beside it, which PEFT's config does not hold."""
        super()._write(folder)
        write_options(folder, METHOD.name, self._options, self._seed)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put LoRA on a model, to be trained by LoRA+."""
    return attach_peft(
        model,
        setting,
        lambda **given: lora_config(options, **given),
        method=METHOD,
        kind=LoraPlusAttached,
        options=options,
        seed=setting.seed,
    )


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved LoRA+ on its base."""
    options, _ = read_options(folder, METHOD)
    return load_peft(model, folder, LoraPlusAttached, options=options)


METHOD = Method(
    name="lora_plus",
    title="LoRA+",
    paper="arXiv 2402.12354",
    source="peft",
    cost="As LoRA.",
    how_updated="(alpha / rank) B A.",
    parameters=(*LORA_PARAMETERS, RATIO),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=lora_rank,
    plain_lora=True,
    own_optimizer=True,
)
