"""A model as a folder or file of named tensors: headers only, nothing loaded.

Raises for what cannot be read at all; what can be read in part (a quantised model, say) is listed and
left to the coverage ledger.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, UnsafeInput, UnsupportedFormat, UsageError, printable
from intruscope.weights.matrices import Finding
from intruscope.weights.names import ModelName, parse_name
from intruscope.weights.number_formats import unpack
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.shards import read_index
from intruscope.weights.stored import FileTensor, StoredTensor, input_record, list_folder
from intruscope.weights.strict_json import read_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intruscope.weights.architecture import ModuleClass

SAFETENSORS_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
PICKLE_NAMES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "pytorch_model.pt")
# Left by training beside the weights; they hold no model and are never opened.
TRAINING_LEFTOVERS = frozenset(
    {"optimizer.pt", "optimizer.bin", "optimizer.safetensors", "scheduler.pt", "scheduler.bin", "scaler.pt"}
    | {"rng_state.pth", "training_args.bin", "sampler.bin"}
)
_FOREIGN = {
    ".gguf": "GGUF",
    ".ggml": "GGML",
    ".h5": "Keras / TensorFlow HDF5",
    ".keras": "Keras",
    ".msgpack": "Flax msgpack",
    ".onnx": "ONNX",
    ".ot": "rust-bert",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
    ".pb": "TensorFlow graph",
    ".nemo": "NeMo",
    ".npz": "NumPy archive",
    ".ckpt": "checkpoint pickle",
    ".llamafile": "llamafile",
}
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
_CONVERT = "give the safetensors version of this model, or save one with save_pretrained"


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Something that holds weights, before any is read: names, shapes and dtypes, from headers alone.

    Attributes:
        name: As the user gave it.
        path: Its folder, or its single file; None in memory.
        revision: Commit on the hub, when it came from there.
        tensors: Stored name to record.
        inputs: One record per file read: ``path``, ``bytes``, ``mtime_ns``, ``inode``; none in memory.
        findings: What the reader should know of the files themselves.
    """

    name: str
    path: Path | None
    revision: str | None = None
    tensors: Mapping[str, StoredTensor]
    inputs: tuple[dict[str, object], ...]
    findings: tuple[Finding, ...] = ()

    @property
    def on_disk(self) -> Path:
        """Its folder, or its single file.

        Raises:
            UsageError: it is in memory, and what was asked needs its files.
        """
        if self.path is None:
            raise UsageError(
                f"{printable(self.name)} has no files, and this needs them",
                remedy="save it with save_pretrained and name the folder",
            )
        return self.path

    @property
    def folder(self) -> Path:
        """Where its files lie; errors as :attr:`on_disk`."""
        return self.on_disk if self.on_disk.is_dir() else self.on_disk.parent

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold its tensors, each once, by name; none in memory."""
        return sorted({tensor.path for tensor in self.tensors.values() if tensor.path is not None})

    @property
    def full_name(self) -> str:
        """Its name with the commit that was resolved, for reports."""
        return f"{self.name} ({self.revision})" if self.revision else self.name


@dataclass(frozen=True, kw_only=True)
class ModelSource(WeightSource):
    """A whole model before anything of it is read.

    Attributes:
        config: ``config.json`` as data (nothing in it is ever imported); empty when there is none.
        classes: Of its linear layers and embeddings by module name, where the model itself is at hand; see
            :func:`intruscope.weights.architecture.module_classes`.
        packed: Name of the number format that weights were unpacked from; None for plain numbers.
        parts: Names of tensors that belong to packed weights, such as scales.
        unreadable: Reason why these tensors mean nothing alone (quantised), None when they do.
    """

    config: dict[str, Any]
    classes: Mapping[str, ModuleClass] = field(default_factory=dict)
    packed: str | None = None
    parts: frozenset[str] = frozenset()
    unreadable: str | None = None


def open_model(name_or_path: str | Path | ModelName, *, allow_pickle: bool = False) -> ModelSource:
    """Open a model by name: a path, or a hub id that is downloaded first.

    Args:
        name_or_path: Folder, file, ``org/name@revision``, or what :func:`parse_name` made of one. An adapter
            part is not opened here.
        allow_pickle: Also read PyTorch pickles, with ``weights_only``.

    Raises:
        UsageError: the name is neither a path nor a hub id.
        UnsafeInput: pickles without leave, or files outside the folder.
        UnsupportedFormat: a known format other than those read.
        MalformedInput: damaged, incomplete or contradictory files.
    """
    if isinstance(name_or_path, Path):  # never taken for a hub id
        return open_folder_or_file(name_or_path, name=str(name_or_path), allow_pickle=allow_pickle)
    name = name_or_path if isinstance(name_or_path, ModelName) else parse_name(name_or_path)
    if name.path is not None:
        return open_folder_or_file(name.path, name=name.given, allow_pickle=allow_pickle)
    if name.hub_id is None:
        raise UsageError("the model name is empty", remedy="give a path or a hub id")
    from intruscope.weights.hub import download_model

    folder, revision = download_model(name.hub_id, revision=name.revision, allow_pickle=allow_pickle)
    return open_folder_or_file(folder, name=name.given, revision=revision, allow_pickle=allow_pickle)


def open_folder_or_file(
    path: Path, *, name: str, revision: str | None = None, allow_pickle: bool = False
) -> ModelSource:
    """Open a local model; arguments and errors as :func:`open_model`."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        _refuse_pipeline(path)
        weights = _weights_file(path, allow_pickle=allow_pickle)
    else:
        weights = path
    config_path = folder / "config.json"
    config = read_json_object(config_path) if os.path.lexists(config_path) else {}
    tensors, files = _read_weights(weights, allow_pickle=allow_pickle)
    stamps = {tensor.path: tensor.stamp for tensor in tensors.values()}
    inputs = tuple(input_record(file, stamps.get(file)) for file in files)
    given: dict[str, Any] = {
        "name": name,
        "path": path,
        "revision": revision,
        "config": config,
        "inputs": inputs,
    }
    found = unpack(config, tensors)
    if found is None:
        return ModelSource(**given, tensors=tensors, unreadable=_quantisation(config, tensors))
    message = f"the weights of {printable(name)} are stored as {found.title} and are dequantised to be read"
    return ModelSource(
        **given,
        tensors=found.tensors,
        packed=found.title,
        parts=found.parts,
        findings=(Finding(code="dequantised", severity="info", message=message),),
    )


def _weights_file(folder: Path, *, allow_pickle: bool) -> Path:
    """Choose the file or index that holds a folder's weights, or say by name what lies there instead."""
    for stem in SAFETENSORS_NAMES:
        for candidate in (folder / stem, folder / f"{stem}.index.json"):
            if os.path.lexists(candidate):
                if candidate.suffix == ".safetensors":
                    _refuse_second_truth(candidate)
                return candidate
    names = [entry.name for entry in list_folder(folder)]
    candidates = [n for n in names if n.endswith(".safetensors") and not _is_leftover_or_adapter(n)]
    indexes = [n for n in names if n.endswith(".safetensors.index.json")]
    if len(indexes) == 1:
        return folder / indexes[0]
    if len(candidates) == 1 and not indexes:
        return folder / candidates[0]
    if candidates or indexes:
        shown = ", ".join(printable(n) for n in [*indexes, *candidates][:6])
        raise MalformedInput(
            f"the folder holds several weight files ({shown}) and no single index that covers them",
            remedy="name the file to scan, or restore the missing model.safetensors.index.json",
            file=folder,
        )
    pickles = [n for n in PICKLE_NAMES if n in names or f"{n}.index.json" in names]
    if pickles:
        found = folder / (pickles[0] if pickles[0] in names else f"{pickles[0]}.index.json")
        if not allow_pickle:
            raise _pickle_refused(found)
        return found
    raise _nothing_to_read(folder, names)


def _is_leftover_or_adapter(name: str) -> bool:
    return name in TRAINING_LEFTOVERS or name.startswith("adapter_model")


def _refuse_second_truth(single: Path) -> None:
    """A single file and an index beside it must name the same tensors."""
    index = single.with_name(f"{single.name}.index.json")
    if not os.path.lexists(index):
        return
    indexed = set(read_index(index).shard_of)
    held = set(read_header(single))
    if indexed != held:
        example = printable(min(indexed ^ held))
        raise MalformedInput(
            f"the file holds {len(held)} tensors and {index.name} beside it lists {len(indexed)}, and they "
            f"are not the same (first difference: {example})",
            remedy="remove the file or the index that is out of date",
            file=single,
        )


def _nothing_to_read(folder: Path, names: Iterable[str]) -> Exception:
    names = list(names)
    adapters = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}
    if adapters & set(names):
        return UnsupportedFormat(
            "this is an adapter, not a whole model",
            remedy="give it as the tuned model, or as base+adapter",
            file=folder,
        )
    for entry in names:
        kind = _foreign_kind(folder / entry)
        if kind is not None:
            return UnsupportedFormat(
                f"the weights are in a format that is not read: {kind} ({printable(entry)})",
                remedy=_CONVERT,
                file=folder,
            )
    incomplete = [n for n in names if n.endswith(".incomplete")]
    if incomplete:
        return MalformedInput(
            f"the folder holds an unfinished download ({printable(incomplete[0])}) and no model.safetensors",
            remedy="finish the download",
            file=folder,
        )
    return MalformedInput(
        f"none of the {len(names)} files in the folder is model.safetensors or its index",
        remedy="check that this is the model's folder",
        file=folder,
    )


def _foreign_kind(path: Path) -> str | None:
    if path.name.startswith(("flax_model", "tf_model")):
        return "Flax msgpack" if path.name.startswith("flax") else "TensorFlow"
    return _FOREIGN.get(path.suffix.lower())


def _refuse_pipeline(folder: Path) -> None:
    if not os.path.lexists(folder / "model_index.json"):
        return
    parts = [p.name for p in list_folder(folder) if (p / "config.json").exists()]
    main = next((p for p in ("transformer", "unet") if p in parts), parts[0] if parts else "unet")
    shown = ", ".join(map(printable, parts[:8]))
    raise UnsupportedFormat(
        f"this is a diffusers pipeline of {len(parts)} models ({shown})",
        remedy=f"give the sub-folder to scan, for instance {folder / main}",
        file=folder,
    )


def _pickle_refused(path: Path) -> UnsafeInput:
    return UnsafeInput(
        "this is a PyTorch pickle, which can run code when it is opened",
        remedy="use the safetensors version, or pass --allow-pickle if you trust its author",
        file=path,
    )


def _read_weights(path: Path, *, allow_pickle: bool) -> tuple[dict[str, FileTensor], tuple[Path, ...]]:
    """Tensors of one file or of all shards of an index, and the files that were read for them."""
    name = path.name
    if name.endswith(".safetensors.index.json"):
        index = read_index(path)
        return index.read(read_header), (path, *index.files)
    if name.endswith((".bin.index.json", ".pt.index.json")):
        if not allow_pickle:
            raise _pickle_refused(path)
        from intruscope.weights.pickle_file import read_pickle

        index = read_index(path, suffixes=_PICKLE_SUFFIXES)
        return index.read(read_pickle), (path, *index.files)
    kind = _foreign_kind(path)
    if kind is not None:
        raise UnsupportedFormat(
            f"the weights are in a format that is not read: {kind}", remedy=_CONVERT, file=path
        )
    if name in TRAINING_LEFTOVERS:
        fact = "this file is the state of a training run, not a model's weights"
        raise UnsupportedFormat(fact, remedy="give the model's folder", file=path)
    if path.suffix in _PICKLE_SUFFIXES:
        if not allow_pickle:
            raise _pickle_refused(path)
        from intruscope.weights.pickle_file import read_pickle

        return read_pickle(path), (path,)
    return read_header(path), (path,)


_QUANTISED_SUFFIXES = (".qweight", ".weight_packed", ".SCB", "_blocks", ".weight_scale_inv", ".absmax")


def _quantisation(config: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> str | None:
    """Name the quantisation whose scales a plain reading would ignore, or None."""
    settings = config.get("quantization_config")
    if isinstance(settings, dict):
        return f"quantised with {printable(settings.get('quant_method', 'an unnamed method'))}"
    for name, tensor in tensors.items():
        if name.endswith(_QUANTISED_SUFFIXES):
            return f"quantised (it holds {printable(name)})"
        if tensor.dtype.startswith(("F8_", "F4", "F6_")):
            return f"quantised to {tensor.dtype}"
    return None
