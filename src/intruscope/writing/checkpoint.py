"""A full checkpoint with some of its tensors replaced. Everything else keeps its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.errors import UnsupportedFormat
from intruscope.weights.layout import matrix_kind
from intruscope.weights.output import json_text
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import FileTensor
from intruscope.weights.written import HashedFile, copy_with_replacements, write_safetensors
from intruscope.writing.folder import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.writing.folder import OutputFolder

_SINGLE = "model.safetensors"
NewTensors = dict[str, "Callable[[], torch.Tensor]"]
"""By stored name, how to compute each tensor that is replaced: same dtype and shape as before."""


def check_copyable(source: ModelSource) -> None:
    """Refuse a checkpoint that cannot be written in the format it is stored in.

    Raises:
        UnsupportedFormat: it is stored as pickles.
    """
    if source.packed is not None:
        raise UnsupportedFormat(
            f"the checkpoint is stored as {source.packed}, which can be read but not written",
            remedy="dequantise it first, and give that model",
            file=source.path,
        )
    pickle = next((file for file in source.weight_files if file.suffix != ".safetensors"), None)
    if pickle is not None:
        raise UnsupportedFormat(
            "checkpoints stored as pickles can be read but not written",
            remedy="save the model as safetensors with save_pretrained first",
            file=pickle,
        )


def check_readable(*sources: ModelSource | AdapterSource) -> None:
    """Refuse a quantised model: its tensors mean nothing without their scales.

    Raises:
        UnsupportedFormat: a model is quantised.
    """
    for source in sources:
        if isinstance(source, ModelSource) and source.unreadable is not None:
            raise UnsupportedFormat(
                f"the model is {source.unreadable}; float64, float32, float16 or bfloat16 is needed",
                remedy="give the unquantised model that it was made from",
                file=source.path,
            )


def write_checkpoint(source: ModelSource, new: NewTensors, target: OutputFolder) -> None:
    """Write all weight files and their index, and read the headers back.

    Tensors that the config ties to a replaced one are replaced too.

    Args:
        source: The model whose files are copied.
        new: The tensors to replace.
        target: Where to write.

    Raises:
        MalformedInput: an input changed since planning, or what was written reads back differently.
        OSError: there is no room.
    """
    new = {**new, **_tied(source, new)}
    if source.path is None:
        _write_from_memory(source, new, target)
        return
    for record in source.inputs:
        index = Path(str(record["path"]))
        if index.name.endswith(".index.json") and index.parent == source.folder:
            target.copy(index, index.name)
    for path in source.weight_files:
        tensors = [t for t in source.tensors.values() if isinstance(t, FileTensor) and t.path == path]
        if any(tensor.name in new for tensor in tensors):
            target.write(path.name, _with_replacements(path, tensors, new))
        else:
            target.copy(path, path.name)
        if _described(read_header(target.path / path.name).values()) != _described(tensors):
            raise damaged(path.name)


def _write_from_memory(source: ModelSource, new: NewTensors, target: OutputFolder) -> None:
    """One file with every tensor, and the config beside it."""
    tensors = {name: new[name]() if name in new else tensor for name, tensor in source.tensors.items()}
    target.write(_SINGLE, lambda file: write_safetensors(file, tensors, {"format": "pt"}))
    if source.config:
        target.write("config.json", json_text(source.config).encode())
    if _described(read_header(target.path / _SINGLE).values()) != _described(source.tensors.values()):
        raise damaged(_SINGLE)


def _with_replacements(
    path: Path, tensors: list[FileTensor], new: NewTensors
) -> Callable[[HashedFile], None]:
    def replacement(tensor: FileTensor) -> torch.Tensor | None:
        make = new.get(tensor.name)
        return None if make is None else make()

    return lambda file: copy_with_replacements(file, path, tensors, replacement)


def _described(tensors: Iterable[StoredTensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


def _tied(source: ModelSource, new: NewTensors) -> NewTensors:
    """Copies of a replaced tensor under another name, if the config ties embedding and head."""
    tied: NewTensors = {}
    if source.config.get("tie_word_embeddings", True) is False:
        return tied
    import torch

    for name, make in new.items():
        tensor, kind = source.tensors[name], _kind(name)
        if kind == "other":
            continue
        for other in source.tensors.values():
            twin = {kind, _kind(other.name)} == {"embedding", "head"} and other.name not in new
            alike = other.shape == tensor.shape and other.dtype == tensor.dtype
            if twin and alike and torch.equal(other.read(), tensor.read()):
                tied[other.name] = make
    return tied


def _kind(name: str) -> str:
    module = name.removesuffix(".weight")
    return matrix_kind(module, in_block=False) if name.endswith(".weight") else "other"
