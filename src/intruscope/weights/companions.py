"""The files that belong to a model beside its weights: configs, tokenizer, licence, custom code as text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_SUFFIXES = frozenset(
    {
        ".json",
        ".jsonl",
        ".txt",
        ".md",
        ".model",
        ".jinja",
        ".tiktoken",
        ".yaml",
        ".yml",
        ".py",
        ".spm",
        ".bpe",
    }
)
_PLAIN_NAMES = ("license", "licence", "notice", "readme", "use_policy", ".gitattributes")
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack"}
)
_MAX_BYTES = 256 << 20
_NOT_THESE = ("checkpoint-", "runs", "__pycache__", "onnx", "openvino", "coreml")


class Companions(NamedTuple):
    """Files by their place below the model's folder.

    Attributes:
        files: To be copied with the weights.
        left_out: Names of what is not: other weights, training state, anything unknown.
    """

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def companions(folder: Path, *, weights: frozenset[str]) -> Companions:
    """Sort a model's folder into what goes with the weights and what does not.

    Other formats of the weights must not be copied: they would be those of the model as it was.

    Args:
        folder: Of the model.
        weights: Names of its own weight files and their index, which are in neither list.
    """
    files: list[Path] = []
    left_out: list[str] = []
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        skipped = [name for name in sorted(folders) if _is_another(Path(place, name))]
        left_out += [f"{here / name}{os.sep}" for name in skipped]
        folders[:] = sorted(set(folders) - set(skipped))
        for name in sorted(names):
            relative = here / name
            if str(relative) in weights:
                continue
            if _belongs(folder / relative, folder):
                files.append(relative)
            else:
                left_out.append(str(relative))
    return Companions(tuple(files), tuple(left_out))


def _is_another(folder: Path) -> bool:
    """A folder with a purpose of its own: training state, other formats, or weights (another model's)."""
    if folder.is_symlink() or folder.name.startswith((".", *_NOT_THESE)):
        return True
    return any(file.suffix.lower() in _WEIGHT_SUFFIXES for file in folder.iterdir())


def _belongs(file: Path, folder: Path) -> bool:
    lower = file.name.lower()
    if not file.is_file() or file.stat().st_size > _MAX_BYTES or lower.endswith(".index.json"):
        return False
    if file.is_symlink():  # of the hub's cache, or to a neighbour; anything else stays where it is
        target, home = file.resolve(), folder.resolve()
        is_blob = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
        if not target.is_relative_to(home) and not is_blob:
            return False
    return file.suffix.lower() in _SUFFIXES or lower.startswith(_PLAIN_NAMES)
