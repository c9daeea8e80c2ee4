"""SoRA: a gate per rank that training can set to exactly zero, ``dW = s B diag(g) A``.

Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023, arXiv 2311.11696. A
starts as LoRA's, B at zero, the gate at standard normal numbers; s = alpha / rank. The gate has its own
AdamW without weight decay (here its own group in the one AdamW, which takes the same steps), and shrinks
after each step. The paper shrinks by the soft threshold; the authors' program also sets everything below
twice the threshold to zero at once, and adds an L1 term to the loss. Saving drops the ranks whose gate is
zero. The paper's experiments use learning rate 8e-4, weight decay 0.1 and gradients clipped at 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from intruscope.methods.attached import ADAPTER, adamw
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import FactoredAttached, attach_factored, load_factored
from intruscope.methods.lora import DROPOUT, RANK, lora_numbers, lora_rank

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from intruscope.methods.contract import Options, Setting

_PROGRAM = "the authors' program (scripts/run_glue_sora_no_schedule.sh)"
ALPHA = Parameter(
    name="alpha", kind="float", default=16.0, least=0.0, source="the authors' program (src/lora.py)",
    meaning="The update is scaled by alpha / rank.",
)  # fmt: skip
PROX = Parameter(
    name="prox", kind="str", default="paper", choices=("paper", "official"), source="arXiv 2311.11696",
    meaning="How gates shrink: by the soft threshold, or as in the authors' program.",
)  # fmt: skip
THRESHOLD = Parameter(
    name="threshold", kind="float", default=3e-4, least=0.0, source=_PROGRAM,
    meaning="Amount by which a gate shrinks in each step (xi).",
)  # fmt: skip
L1 = Parameter(
    name="l1", kind="float", default=10.0, least=0.0, source=_PROGRAM,
    meaning="Weight of the mean absolute gate in the loss; only with prox=official.",
)  # fmt: skip


class SoraAttached(FactoredAttached):
    """SoRA on a model."""

    def gates(self) -> list[tuple[str, nn.Parameter]]:
        """The gate of each matrix, by its name in ``model``."""
        return [(name, p) for name, p in self.trainable() if name.endswith(".gate")]

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW whose steps also shrink the gates; these, biases and norms without decay."""
        from intruscope.methods.sora_layers import add_gate_steps

        optimizer = adamw(self.trainable(), lr=lr, weight_decay=weight_decay)
        prox = cast("Literal['paper', 'official']", self.options["prox"])
        add_gate_steps(
            optimizer,
            [gate for _, gate in self.gates()],
            threshold=float(self.options["threshold"]),
            prox=prox,
            l1=float(self.options["l1"]) if prox == "official" else 0.0,
        )
        return optimizer

    def plain_factors(self, name: str) -> tuple[Tensor, Tensor]:
        """An ordinary LoRA of the ranks whose gate is not zero (one rank of zeros where there is none)."""
        from intruscope.methods.sora_layers import kept_ranks

        gate_R = self._layer(name).lora_A[ADAPTER].gate.detach()
        return kept_ranks(*super().plain_factors(name), gate_R)


def _prepare(config: Any, options: Options) -> Any:  # noqa: ARG001  # as of all methods
    from intruscope.methods.sora_layers import use_gates

    return use_gates(config)


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put SoRA on a model."""
    return attach_factored(model, setting, options, method=METHOD, prepare=_prepare, kind=SoraAttached)


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare, kind=SoraAttached)


METHOD = Method(
    name="sora",
    title="SoRA",
    paper="arXiv 2311.11696",
    source="intruscope",
    cost="LoRA of the largest rank, and one number per rank; what is saved has only the ranks that are left.",
    how_updated="(alpha / rank) B diag(g) A.",
    parameters=(RANK, ALPHA, DROPOUT, PROX, THRESHOLD, L1),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lambda num_out, num_in, options: (
        lora_numbers(num_out, num_in, options) + int(options["rank"])
    ),
    max_rank=lora_rank,
    plain_lora=True,
    own_optimizer=True,
)
