"""CorDA: LoRA that starts from what the weights do least on general text.

Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware
Parameter-Efficient Fine-tuning", arXiv 2406.05223, in its knowledge-preserved mode. With C the uncentred
covariance of a layer's inputs on text to keep, ``W0 C = U diag(S) V.T``. The last ``rank`` components of
``U diag(S) (V.T C^-1)`` are moved from the base to the adapter as ``s B0 A0``, with ``B0 = U sqrt(S / s)``
and ``A0 = sqrt(S / s) V.T C^-1``. C is divided by its mean diagonal, which is ours, and its diagonal gains
0.01, as in the authors' program. The paper takes it from 256 texts. Here the base stays as it is and
``s (B A - B0 A0)`` is added to it, which is the same.

PEFT has this start as well, but for single texts without padding, weighted by their largest input, and its
module imports a package that PEFT does not require (attrs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.attached import ADAPTER, tuner_layers
from intruscope.methods.contract import Method
from intruscope.methods.factored import attach_factored, count_from_start, load_factored
from intruscope.methods.lora import LORA_PARAMETERS, doubled_rank, lora_numbers
from intruscope.methods.targets import targets_of, weight_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.methods.contract import Options, Setting
    from intruscope.methods.factored import FactoredAttached

_DAMPING = 0.01


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put CorDA on a model; it is run over ``setting.kept``.

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
    attached = attach_factored(model, setting, options, method=METHOD, prepare=count_from_start)
    last = slice(-int(options["rank"]), None)
    for name, layer in tuner_layers(attached.model).items():
        # The scale of the covariance cancels in B0 A0, but decides how large B0 is beside A0.
        covariance_II = moments.pop(name)
        covariance_II /= covariance_II.diagonal().mean()
        covariance_II.diagonal().add_(_DAMPING)
        left, values, right = svd(weight_of(layer.get_base_layer()).double() @ covariance_II)
        inverse_IR = torch.linalg.solve(covariance_II, right[:, last])
        begin_at(layer, ADAPTER, left[:, last], values[last], inverse_IR)
    return attached


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=count_from_start)


METHOD = Method(
    name="corda",
    title="CorDA (knowledge-preserved)",
    paper="arXiv 2406.05223",
    source="intruscope",
    cost="As LoRA, with the products of twice the rank; at the start the model is run over text, and each "
    "matrix takes an SVD.",
    how_updated="(alpha / rank) (B A - B0 A0).",
    parameters=LORA_PARAMETERS,
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=doubled_rank,
    plain_lora=True,
    needs_kept=True,
)
