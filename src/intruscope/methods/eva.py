"""EVA: LoRA whose A starts as the principal directions of the data, with more rank where they explain more.

Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation", arXiv
2410.07170. PEFT's incremental PCA of each layer's inputs runs the model over the batches until the
directions converge. The mean rank is ``rank``, and a matrix that gets none is left unchanged. B starts at
zero, and the base is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError
from intruscope.methods.attached import PeftAttached, attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.lora import LORA_PARAMETERS, lora_config, lora_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from intruscope.methods.contract import Options, Setting

RHO = Parameter(
    name="rho", kind="float", default=2.0, least=1.0, most=16.0,
    source="PEFT (EvaConfig)", meaning="Maximum rank of a matrix, as a multiple of the mean rank; 1 gives "
    "all the same rank.",
)  # fmt: skip


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """Of the matrix that got most."""
    return min(round(float(options["rho"]) * int(options["rank"])), num_out, num_in)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put EVA on a model; it is run over ``setting.batches``.

    Raises:
        UsageError: there are no batches, or one has too few tokens for the rank.
    """
    import torch
    from peft import EvaConfig, initialize_lora_eva_weights

    from intruscope.adapters.live_models import quiet

    batches = [_as_peft_takes(batch) for batch in setting.batches or ()]
    needed = round(float(options["rho"]) * int(options["rank"]))
    _check(batches, needed)
    attached = attach_peft(
        model,
        setting,
        lambda **given: lora_config(
            options, init_lora_weights="eva", eva_config=EvaConfig(rho=float(options["rho"])), **given
        ),
        method=METHOD,
    )
    with quiet():  # restores the random state
        torch.manual_seed(setting.seed)
        initialize_lora_eva_weights(
            attached.model, batches, prepare_layer_inputs_fn=_of_tokens, show_progress_bar=False
        )
    return PeftAttached(attached.model)  # matrices that got no rank are plain layers again


def _as_peft_takes(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A dict, whose labels, if any, say of each token whether it counts.

    That is so of a causal model's. Those of a classification are of whole texts, and those of a masked model
    mark the few tokens that its input hides: there every token counts.
    """
    ids, labels = batch["input_ids"], batch.get("labels")
    says_it = (
        labels is not None and labels.shape == ids.shape and bool(((labels == ids) | (labels == -100)).all())
    )
    return {name: value for name, value in batch.items() if name != "labels" or says_it}


def _check(batches: list[Any], needed: int) -> None:
    """PEFT would run for ever over batches with fewer tokens than directions."""
    if not batches:
        raise UsageError(
            "EVA computes its start from training data, and there is none",
            remedy="pass the training data, or choose another method",
        )
    fewest = min(map(_num_tokens, batches))
    if fewest < needed:
        raise UsageError(
            f"a batch has only {fewest} tokens, and EVA needs at least {needed} (rho times the rank)",
            remedy="use larger batches, or lower rank or rho",
        )


def _num_tokens(batch: Mapping[str, Any]) -> int:
    """Tokens that PEFT takes: no padding, and none whose label says that it does not count."""
    counts = batch.get("attention_mask", batch["input_ids"]).bool()
    return int((counts & (batch["labels"] != -100) if "labels" in batch else counts).sum())


def _of_tokens(layer_input: Any, kept: Tensor, name: str) -> Tensor:
    """The inputs of the tokens that are no padding: (tokens, in)."""
    hidden: Tensor = layer_input if hasattr(layer_input, "ndim") else layer_input[0]
    if hidden.ndim != 3:
        raise UsageError(
            f"the layer's input has {hidden.ndim} axes, and EVA needs 3 (texts, tokens, features)",
            remedy="leave it out of the targets (a pooler sees one token of each text)",
            tensor=name,
        )
    return hidden[kept.T.unbind()]


METHOD = Method(
    name="eva",
    title="EVA",
    paper="arXiv 2410.07170",
    source="peft",
    cost="As LoRA, plus some forward passes and an incremental PCA of each layer's inputs at the start.",
    how_updated="(alpha / rank) B A, rank and alpha per matrix.",
    parameters=(*LORA_PARAMETERS, RHO),
    documentation=__doc__ or "",
    attach=attach,
    load=load_peft,
    num_trainable=lora_numbers,
    max_rank=max_rank,
    plain_lora=True,
    departures=frozenset({"uneven_ranks"}),
)
