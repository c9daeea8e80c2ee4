"""LoRA-Null: LoRA whose A sees only what general text hardly uses, so that outputs on it stay as they are.

Tang et al., "LoRA-Null: Low-Rank Adaptation via Null Space for Large Language Models", arXiv 2503.02659. A
layer's inputs X (in, tokens) on text to keep have a null space, or at least directions that they use least:
their last ``rank`` left singular vectors U_null. The projection ``W0 U_null U_null.T = U diag(S) V.T`` is
moved from the base to the adapter as ``s B0 A0``, with ``B0 = U sqrt(S / s)`` and ``A0 = sqrt(S / s) V.T``.
The rows of A0 span U_null, so ``A0 X`` is zero where X has a null space of that size. A is frozen, the
variant that the paper finds to forget least: the update ``s (B - B0) A0`` keeps this property. With
``freeze_a=false`` A is trained as well and may leave the null space. The paper takes X from 256 texts. Here
the base stays as it is and the update is added to it, which is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.methods.attached import ADAPTER, tuner_layers
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import FactoredAttached, attach_factored, load_factored
from intruscope.methods.lora import LORA_PARAMETERS, doubled_rank, lora_numbers, lora_rank
from intruscope.methods.targets import targets_of, weight_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.methods.contract import Options, Setting

FREEZE_A = Parameter(
    name="freeze_a", kind="bool", default=True, source="arXiv 2503.02659v1, abstract",
    meaning="Train only B, so that the update stays in the null space.",
)  # fmt: skip


class LoraNullAttached(FactoredAttached):
    """LoRA-Null on a model; A is never trained unless asked for, whatever PEFT switches on and off."""

    def __init__(self, model: Any, **rest: Any) -> None:
        super().__init__(model, **rest)
        if self.options["freeze_a"]:
            for layer in self._layers.values():
                layer.frozen_peft_weight_names = {ADAPTER: ("lora_A",)}
                layer._freeze_non_trainable_peft_weights(ADAPTER)


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.methods.offset_layers import use_offsets

    return use_offsets(config, fixed_down=bool(options["freeze_a"]))


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put LoRA-Null on a model; it is run over ``setting.kept``.

    Raises:
        UsageError: there is no text to keep, it does not reach a layer, or the rank exceeds the smaller side
            of a matrix.
    """
    import torch

    from intruscope.linalg.dense import svd
    from intruscope.methods.kept import input_moments, kept_batches
    from intruscope.methods.offset_layers import begin_at

    names = targets_of(model, setting, METHOD)
    moments = input_moments(model, names, kept_batches(setting, METHOD.title))
    attached = attach_factored(
        model, setting, options, method=METHOD, prepare=_prepare, kind=LoraNullAttached
    )
    for name, layer in tuner_layers(attached.model).items():
        null_IR = torch.linalg.eigh(moments.pop(name))[1][:, : int(options["rank"])]
        left_OR, values_R, mixed_RR = svd(weight_of(layer.get_base_layer()).double() @ null_IR)
        begin_at(layer, ADAPTER, left_OR, values_R, null_IR @ mixed_RR)
    return attached


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare, kind=LoraNullAttached)


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """B (out, rank), and A (rank, in) unless it is frozen."""
    return int(options["rank"]) * num_out if options["freeze_a"] else lora_numbers(num_out, num_in, options)


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """The rank with A frozen, else twice that: the start that is subtracted, and what became of it."""
    return (lora_rank if options["freeze_a"] else doubled_rank)(num_out, num_in, options)


METHOD = Method(
    name="lora_null",
    title="LoRA-Null",
    paper="arXiv 2503.02659",
    source="intruscope",
    cost="rank * out trainable parameters per matrix, otherwise as LoRA; at the start the model is run over "
    "text, and each matrix takes an eigendecomposition of in x in.",
    how_updated="(alpha / rank) (B - B0) A, or (alpha / rank) (B A - B0 A0) with freeze_a=false.",
    parameters=(*LORA_PARAMETERS, FREEZE_A),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=num_trainable,
    max_rank=max_rank,
    plain_lora=True,
    needs_kept=True,
)
