"""The body of a model between two tasks: the update merged into it in float32, and written beside the base.

A written body is a whole checkpoint of the base's own form (its language-model head included), so that it can
be scanned, measured on text, and trained on like the base. Layers that a task's model adds, its head and a
pooler that the base lacks, belong to the task and are not written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from intruscope.adapters.live_models import quiet, read_tensors
from intruscope.errors import UnsupportedFormat
from intruscope.methods.registry import find
from intruscope.weights.output import whole_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from intruscope.train.loading import Loaded
    from intruscope.weights.source import ModelSource


def merged_body(loaded: Loaded, method: str, folder: Path) -> dict[str, Tensor]:
    """The body of a trained model, its update in its weights.

    Args:
        loaded: The model before this training, with a head for the same data; it is used up.
        method: That trained it.
        folder: Where the run put its model.

    Returns:
        Name in the body to tensor, float32.

    Raises:
        MalformedInput: the folder holds no such model.
    """
    merged: Any = find(method).load(loaded.model, folder).merged()
    state: Mapping[str, Tensor] = merged.base_model.state_dict()
    return {name: tensor.detach() for name, tensor in state.items() if not _is_drawn(name, loaded)}


def stored_names(source: ModelSource, loaded: Loaded) -> dict[str, str]:
    """The name under which a checkpoint stores each tensor of the body.

    Raises:
        UnsupportedFormat: it stores some under another name or in another form than transformers has them in
            memory, so that trained weights could not be put back.
    """
    model: Any = loaded.model
    prefix = f"{model.base_model_prefix}."
    found: dict[str, str] = {}
    for name in model.base_model.state_dict():
        if _is_drawn(name, loaded):
            continue
        stored = next((each for each in (prefix + name, name) if each in source.tensors), None)
        if stored is None:
            raise UnsupportedFormat(
                "the checkpoint stores this weight under another name or in another form than transformers "
                "does, "
                "so the trained weights could not be written back",
                remedy="load the model in transformers and save it with save_pretrained",
                file=source.path,
                tensor=prefix + name,
            )
        found[name] = stored
    return found


def write_body(
    base: ModelSource,
    names: Mapping[str, str],
    body: Mapping[str, Tensor],
    tokenizer: Any,
    folder: Path,
) -> None:
    """Write the base with another body: every number in float32 or wider, whole or not at all.

    Args:
        base: The original model; everything but the body is its own.
        names: By :func:`stored_names`.
        body: By :func:`merged_body`.
        tokenizer: That is written beside it.
        folder: New or empty.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.whole_folder`.
    """
    from safetensors.torch import save_file

    tensors = read_tensors(base)
    tensors.update({stored: body[name] for name, stored in names.items()})
    wide = {stored: _wide(tensor) for stored, tensor in tensors.items()}
    config = {key: value for key, value in base.config.items() if key != "torch_dtype"}
    with whole_folder(folder) as whole, quiet():
        save_file(wide, whole / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True)
        (whole / "config.json").write_text(text + "\n", encoding="utf-8")
        tokenizer.save_pretrained(str(whole))


def _is_drawn(name: str, loaded: Loaded) -> bool:
    """Whether a tensor of the body is of a layer that the base lacks."""
    model: nn.Module = loaded.model
    whole = f"{model.base_model_prefix}.{name}"
    return any(whole.startswith(f"{layer}.") for layer in loaded.drawn)


def _wide(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    # A copy of its own: the file's writer takes no tensors that share memory.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).clone(
        memory_format=torch.contiguous_format
    )
