"""OPLoRA: LoRA projected off the largest singular directions of the weights, which it leaves exactly alone.

Xiong and Xie, "OPLoRA: Orthogonal Projection LoRA Prevents Catastrophic Forgetting during Parameter-Efficient
Fine-Tuning", arXiv 2510.13003 (AAAI 2026). ``dW = s P_L B A P_R`` with ``P_L = I - U_k U_k.T`` and
``P_R = I - V_k V_k.T``, where U_k and V_k are the ``num_preserved`` leading left and right singular vectors
of W0. Since ``U_k.T dW = 0`` and ``dW V_k = 0``, the leading singular triplets of W0 are triplets of W0 + dW,
though not necessarily its leading ones: a large update may put others above them. A starts as LoRA's and B
at zero, and the base is not changed. What is saved is an ordinary LoRA of the projected factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError
from intruscope.methods.attached import ADAPTER, tuner_layers
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import attach_factored, load_factored
from intruscope.methods.lora import LORA_PARAMETERS, lora_numbers
from intruscope.methods.targets import targets_of, weight_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.methods.contract import Options, Setting
    from intruscope.methods.factored import FactoredAttached

PRESERVED = Parameter(
    name="num_preserved", kind="int", default=16, least=1,
    source="ours: the paper's value is not confirmed",
    meaning="Number of leading singular directions of each matrix that are left alone (k).",
)  # fmt: skip


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.methods.oplora_layers import use_projections

    return use_projections(config, preserved=int(options["num_preserved"]))


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put OPLoRA on a model.

    Raises:
        UsageError: a matrix has no more directions than those to be left alone.
    """
    from intruscope.linalg.dense import svd

    preserved = int(options["num_preserved"])
    for name in targets_of(model, setting, METHOD):
        shape = weight_of(model.get_submodule(name)).shape
        if min(shape) <= preserved:
            raise UsageError(
                f"num_preserved = {preserved} leaves nothing to train in a matrix of {shape[0]} x {shape[1]}",
                remedy="lower num_preserved below the smaller side, or leave the layer out of the targets",
                tensor=name,
            )
    attached = attach_factored(model, setting, options, method=METHOD, prepare=_prepare)
    for layer in tuner_layers(attached.model).values():
        left, _, right = svd(weight_of(layer.get_base_layer()).double())
        layer.lora_A[ADAPTER].protect(right[:, :preserved])
        layer.lora_B[ADAPTER].protect(left[:, :preserved])
    return attached


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare)


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """The rank, or what the projections leave where that is less."""
    return min(int(options["rank"]), min(num_out, num_in) - int(options["num_preserved"]))


METHOD = Method(
    name="oplora",
    title="OPLoRA",
    paper="arXiv 2510.13003",
    source="intruscope",
    cost="As LoRA, plus projecting both factors in each step, and num_preserved * (in + out) fixed numbers "
    "per matrix; an SVD of each matrix at the start.",
    how_updated="(alpha / rank) P_L B A P_R.",
    parameters=(*LORA_PARAMETERS, PRESERVED),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=max_rank,
    plain_lora=True,
)
