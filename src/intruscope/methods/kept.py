"""The text whose knowledge a method is to keep, and the inputs that it gives to each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from intruscope.methods.contract import Setting


def kept_batches(setting: Setting, title: str) -> list[Mapping[str, Any]]:
    """The batches of text to keep.

    Args:
        setting: Holds them.
        title: The method that asks.

    Raises:
        UsageError: there are none.
    """
    batches = list(setting.kept or ())
    if not batches:
        raise UsageError(
            f"{title} starts from text whose knowledge it is to keep, and there is none",
            remedy="give general text with --keep-text (in Python, Setting(kept=...)), or choose another "
            "method",
        )
    return batches


def input_moments(
    model: nn.Module, names: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """The sum of ``x.T x`` over every input that each module is given for a token that is no padding.

    Args:
        model: Run in evaluation mode, without gradients; no method is on it yet.
        names: Modules.
        batches: As the model takes them; labels are left out.

    Returns:
        (in, in) of each module, float64.

    Raises:
        UsageError: a module is never run, or not on every token.
    """
    import torch

    moments: dict[str, Tensor] = {}
    mask = torch.zeros(0, dtype=torch.bool)

    def hook(name: str) -> Any:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            hidden = inputs[0].detach()
            if hidden.shape[:-1] != mask.shape:
                raise UsageError(
                    f"the layer's input has the shape {tuple(hidden.shape)} for {tuple(mask.shape)} tokens",
                    remedy="leave it out of the targets (a pooler sees one token of each text)",
                    tensor=name,
                )
            # In float32 directions below 3e-4 of the largest would be lost: their squares are rounded away.
            tokens_TI = hidden[mask].double()
            moments[name] = moments.get(name, 0.0) + tokens_TI.T @ tokens_TI

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                given = {key: value.to(device) for key, value in batch.items() if key != "labels"}
                mask = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
                model(**given)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in moments:
            fact = "the text to keep does not reach this layer"
            raise UsageError(fact, remedy="leave it out of the targets", tensor=name)
    return moments
