"""Adapter folders and files: what lies in them, from headers alone.

Read: PEFT folders (safetensors, or pickle on request), the old ``enable_lora`` format, loralib checkpoints
(whose alpha is not in the file and must be given), and diffusers' old attention processors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.adapters.config import AdapterConfig, read_config
from intruscope.adapters.registry import recognised
from intruscope.errors import MalformedInput, UnsafeInput, UnsupportedFormat, UsageError, printable
from intruscope.weights.matrices import Finding
from intruscope.weights.safetensors_file import read_header, read_metadata
from intruscope.weights.source import WeightSource
from intruscope.weights.stored import input_record, list_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import AdapterKind
    from intruscope.weights.names import ModelName
    from intruscope.weights.stored import FileTensor, StoredTensor

CONFIG_NAME = "adapter_config.json"
SAFETENSORS_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
PICKLE_NAMES = ("adapter_model.bin", "pytorch_lora_weights.bin")
_WHOLE_MODEL_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
SHARED_ID = "shared_id"
"""Where an adapter's config, and the metadata of a file above it, say which merge they are of."""
_MAX_LISTED = 8
_DIFFUSERS_MODELS = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.")


@dataclass(frozen=True, kw_only=True)
class AdapterSource(WeightSource):
    """An adapter before anything of it is read.

    Attributes:
        path: The file with the tensors; None for an adapter in memory.
        kind: What its parameters mean.
        config: Of PEFT; None for formats without one.
        lora_alpha: Given by the user, for loralib.
    """

    kind: AdapterKind
    config: AdapterConfig | None
    lora_alpha: float | None = None

    @property
    def base_name(self) -> str | None:
        """The base that the config names, for a scan of the adapter alone."""
        return self.config.base_name if self.config is not None else None


def find_adapter(name: ModelName, *, allow_pickle: bool = False) -> Path | None:
    """The local folder or file of an adapter, downloaded first where the name is a hub id.

    Returns:
        None when what the name leads to is no adapter (a whole model, say).

    Raises:
        UsageError: no such model on the hub.
        MalformedInput: an adapter and a whole model in one folder, or a damaged file.
    """
    path = name.path
    if path is None:
        if name.hub_id is None:
            return None
        from intruscope.weights.hub import download_model

        path, _ = download_model(name.hub_id, revision=name.revision, allow_pickle=allow_pickle)
    if path.name in (CONFIG_NAME, *SAFETENSORS_NAMES, *PICKLE_NAMES):
        return path
    if not path.is_dir():
        if path.suffix == ".safetensors":
            return path if any(_is_lora_key(key) for key in read_header(path)) else None
        return path if path.suffix in _PICKLE_SUFFIXES and "lora" in path.name.lower() else None
    has_model = any(os.path.lexists(path / n) for n in _WHOLE_MODEL_NAMES)
    if _holds_adapter(path):
        if has_model:
            raise MalformedInput(
                "the folder holds both an adapter and a whole model",
                remedy="name the file of the one to scan",
                file=path,
            )
        return path
    if has_model:
        return None
    loose = [p for p in list_folder(path) if p.suffix in _PICKLE_SUFFIXES and "lora" in p.name.lower()]
    below = any(entry.is_dir() and _holds_adapter(entry) for entry in list_folder(path))
    return path if loose or below else None


def _is_lora_key(key: str) -> bool:
    return ".lora_" in key or key.startswith(("lora_unet_", "lora_te")) or key.endswith("_lora.down.weight")


def _holds_adapter(folder: Path) -> bool:
    return any(os.path.lexists(folder / n) for n in (CONFIG_NAME, *SAFETENSORS_NAMES, *PICKLE_NAMES))


def open_adapter(
    path: Path, *, name: str | None = None, allow_pickle: bool = False, lora_alpha: float | None = None
) -> AdapterSource:
    """Open a local adapter.

    Args:
        path: Its folder or its weights file, from :func:`find_adapter`.
        name: As the user gave it; the path by default.
        allow_pickle: Also read PyTorch pickles, with ``weights_only``.
        lora_alpha: alpha of an adapter that does not store it (loralib), or stores 0; refused elsewhere.

    Raises:
        UsageError: ``lora_alpha`` where the adapter tells it.
        UnsafeInput: a pickle without leave, or a link out of the folder.
        UnsupportedFormat: a known format that is not read, by name.
        MalformedInput: damaged, incomplete or contradictory files.
    """
    weights = _weights_file(path)
    tensors = _read_tensors(weights, allow_pickle=allow_pickle)
    config_path = weights.parent / CONFIG_NAME
    config: AdapterConfig | None = None
    if os.path.lexists(config_path):
        kind, config = read_config(config_path, alpha=lora_alpha)
        takes_alpha = config.raw.get("lora_alpha") == 0
    else:
        kind = _kind_without_config(weights, tensors)
        takes_alpha = kind.name == "loralib"
        if takes_alpha and lora_alpha is None:
            raise UnsupportedFormat(
                "this is a loralib checkpoint, which does not store its alpha",
                remedy="give the alpha it was trained with (--lora-alpha)",
                file=weights,
            )
    if lora_alpha is not None and (not takes_alpha or not 0 < lora_alpha < 1e12):
        raise UsageError(
            f"lora_alpha is {lora_alpha:g}, and this adapter ({kind.title}) "
            + ("needs a positive one" if takes_alpha else "has its own scaling"),
            remedy="leave --lora-alpha out where the adapter stores its alpha",
            file=weights,
        )
    files = ([config_path] if config else []) + [weights]
    if kind.file_above:
        above = weights.absolute().parent.parent / kind.file_above  # the folder may be given as "."
        tensors |= _shared_tensors(above, weights, config, tensors)
        files.append(above)
    return AdapterSource(
        name=name or str(path),
        path=weights,
        revision=path.name if path.parent.name == "snapshots" else None,
        kind=kind,
        config=config,
        lora_alpha=lora_alpha if config is None else None,
        tensors=tensors,
        inputs=tuple(input_record(file) for file in files),
        findings=_further_adapters(path, weights),
    )


def _weights_file(path: Path) -> Path:
    if path.name == CONFIG_NAME:
        path = path.parent
    if not path.is_dir():
        return path
    for name in (*SAFETENSORS_NAMES, *PICKLE_NAMES):
        if os.path.lexists(path / name):
            return _inside(path / name, path)
    below = _adapters_below(path)
    if len(below) == 1:  # the one adapter that was saved, under a name other than "default"
        return _weights_file(path / below[0])
    if below:
        shown = ", ".join(printable(n) for n in below[:_MAX_LISTED])
        raise MalformedInput(
            f"the folder holds {len(below)} adapters in sub-folders ({shown})",
            remedy=f"name one of them, for instance {path / below[0]}",
            file=path,
        )
    loose = sorted(p.name for p in list_folder(path) if p.suffix in (".safetensors", ".bin") and p.is_file())
    if len(loose) == 1:
        return _inside(path / loose[0], path)
    raise MalformedInput(
        f"the folder holds {len(loose)} weight files, and none is adapter_model.safetensors",
        remedy="name the adapter's file, or check that this is its folder",
        file=path,
    )


def _adapters_below(folder: Path) -> list[str]:
    return sorted(entry.name for entry in list_folder(folder) if entry.is_dir() and _holds_adapter(entry))


def _further_adapters(given: Path, weights: Path) -> tuple[Finding, ...]:
    """Other adapters, or checkpoints of this one, that lie below the one that is read."""
    below = _adapters_below(given) if given.is_dir() and weights.parent == given else []
    if not below:
        return ()
    shown = ", ".join(printable(n) for n in below[:_MAX_LISTED])
    message = f"{len(below)} more adapters lie in sub-folders ({shown}) and are not read; name one to scan it"
    return (Finding(code="further-adapters", severity="info", message=message),)


def _inside(file: Path, folder: Path) -> Path:
    """Refuse a link out of the folder, except into the hub cache's blobs beside its snapshots."""
    target, home = file.resolve(), folder.resolve()
    is_blob = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if not target.is_relative_to(home) and not is_blob:
        raise UnsafeInput(
            "this is a link to a file outside of the adapter's folder",
            remedy="copy the file there, or name it directly",
            file=file,
        )
    return file


def _shared_tensors(
    above: Path, weights: Path, config: AdapterConfig | None, own: Mapping[str, StoredTensor]
) -> dict[str, FileTensor]:
    """What an adapter shares with others, from the folder above its own.

    The name of that file is the kind's, never the adapter's to choose, and it may not be a link. Both files
    carry the same :data:`SHARED_ID`, so that parts of different merges are not mixed.
    """
    if above.is_symlink():
        raise UnsafeInput(
            "this is a link, and what adapters share must lie beside their folders itself",
            remedy="copy the file there",
            file=above,
        )
    if not above.is_file():
        raise MalformedInput(
            f"the adapter needs {above.name} in the folder above its own, and it is not there",
            remedy="copy the whole folder that holds this adapter, not the adapter alone",
            file=weights,
        )
    found = read_header(above)
    stated = None if config is None else config.raw.get(SHARED_ID)
    if stated is None or read_metadata(above).get(SHARED_ID) != stated or not found.keys().isdisjoint(own):
        raise MalformedInput(
            "this file and the adapter are not of one merge",
            remedy="copy the whole folder that holds the adapter again",
            file=above,
        )
    return found


def _read_tensors(path: Path, *, allow_pickle: bool) -> dict[str, FileTensor]:
    if path.suffix not in _PICKLE_SUFFIXES:
        return read_header(path)
    if not allow_pickle:
        raise UnsafeInput(
            "this is a PyTorch pickle, which can run code when it is opened",
            remedy="use the safetensors version, or pass --allow-pickle if you trust its author",
            file=path,
        )
    from intruscope.weights.pickle_file import read_pickle

    return read_pickle(path)


def _kind_without_config(path: Path, tensors: Mapping[str, StoredTensor]) -> AdapterKind:
    if any(key.startswith(("lora_unet_", "lora_te")) for key in tensors):
        raise UnsupportedFormat(
            "these are kohya's keys, whose module names are ambiguous; PEFT's and diffusers' are read",
            remedy="convert it with diffusers' save_lora_adapter",
            file=path,
        )
    found = recognised(tensors)
    if found is not None:
        return found
    if any(key.startswith(_DIFFUSERS_MODELS) and ".lora" in key for key in tensors):
        raise UnsupportedFormat(
            "these are diffusers' newer LoRA keys, whose alpha may be in no tensor; its older ones are read",
            remedy="load it in diffusers, fuse it with fuse_lora, and scan the saved model",
            file=path,
        )
    if any(".lora_A." in key or ".lora_embedding_A" in key for key in tensors):
        raise MalformedInput(
            f"these are PEFT's keys, and {CONFIG_NAME} is not beside them: it holds rank and alpha",
            remedy=f"put the adapter's {CONFIG_NAME} into the same folder",
            file=path,
        )
    raise UnsupportedFormat(
        f"none of the {len(tensors)} tensors has a key of PEFT, loralib or diffusers",
        remedy="convert it with the tool that made it to a PEFT adapter, or merge it and scan the checkpoint",
        file=path,
    )
