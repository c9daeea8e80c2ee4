"""Sharded models: ``*.index.json`` with a ``weight_map`` from tensor to file.

The index is untrusted, so its file names are checked as text before any file is opened: they may only name
files in the same folder. Links out of the folder are refused too, except in the hub's cache, where
``snapshots/<commit>/`` holds links into ``blobs/``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.errors import MalformedInput, UnsafeInput, printable
from intruscope.weights.strict_json import read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.weights.stored import FileTensor

_AGAIN = "download or export the model again"
_MAX_NAME_BYTES = 255
_MAX_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A checked index: which file of the folder holds each tensor."""

    path: Path
    shard_of: dict[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards, each once, by name."""
        return tuple(self.path.parent / shard for shard in sorted(set(self.shard_of.values())))

    def read(self, read_file: Callable[[Path], dict[str, FileTensor]]) -> dict[str, FileTensor]:
        """Read every shard's header and check it against the index.

        Raises:
            MalformedInput: missing shards, or a shard that lacks or adds a tensor, or holds another's.
        """
        missing = [file.name for file in self.files if not file.exists()]
        if missing:
            shown = ", ".join(map(printable, missing[:_MAX_SHOWN]))
            more = f" and {len(missing) - _MAX_SHOWN:,} more" if len(missing) > _MAX_SHOWN else ""
            raise MalformedInput(
                f"{len(missing):,} of {len(self.files):,} shards are missing: {shown}{more}",
                remedy="download the missing files",
                file=self.path,
            )
        listed: dict[str, set[str]] = defaultdict(set)
        for name, shard in self.shard_of.items():
            listed[shard].add(name)
        tensors: dict[str, FileTensor] = {}
        for file in self.files:
            held = read_file(file)
            for name in held:
                if name in tensors:
                    fact = f"this tensor is also in {tensors[name].path.name}"
                    raise MalformedInput(fact, remedy=_AGAIN, file=file, tensor=name)
            _check_same(listed[file.name], set(held), file)
            tensors.update(held)
        return tensors


def _check_same(listed: set[str], held: set[str], file: Path) -> None:
    lacking, extra = listed - held, held - listed
    if lacking:
        fact = f"the shard lacks {len(lacking):,} of the tensors that the index lists for it"
        raise MalformedInput(fact, remedy=_AGAIN, file=file, tensor=min(lacking))
    if extra:
        fact = f"the shard holds {len(extra):,} tensors that the index does not list for it"
        raise MalformedInput(fact, remedy=_AGAIN, file=file, tensor=min(extra))


def read_index(path: Path, *, suffixes: tuple[str, ...] = (".safetensors",)) -> ShardIndex:
    """Read an index and check its file names before any of them is opened.

    Raises:
        UnsafeInput: a name leaves the folder (also through a link), or has another suffix.
        MalformedInput: there is no ``weight_map`` of strings, or a name is too long for any file.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        fact = "the index has no weight_map from tensor names to file names"
        raise MalformedInput(fact, remedy=_AGAIN, file=path)
    for shard in sorted(set(weight_map.values())):
        _check_inside(path, shard, suffixes)
    return ShardIndex(path=path, shard_of=weight_map)


def _check_inside(index: Path, shard: str, suffixes: tuple[str, ...]) -> None:
    def unsafe(fact: str) -> UnsafeInput:
        remedy = "do not use this model: its index points at other files"
        return UnsafeInput(fact, remedy=remedy, file=index, tensor=shard)

    separated = any(character in shard for character in "/\\:\0")
    if separated or shard in ("", ".", ".."):
        raise unsafe("the shard's name is a path, not the name of a file in the same folder")
    if not shard.endswith(suffixes):
        raise unsafe(f"the shard's name does not end in {' or '.join(suffixes)}")
    length = len(os.fsencode(shard.encode("utf-8", "replace")))
    if length > _MAX_NAME_BYTES:
        fact = f"a shard's name has {length:,} bytes; no file system allows more than {_MAX_NAME_BYTES}"
        raise MalformedInput(fact, remedy=_AGAIN, file=index, tensor=shard)
    link = index.parent / shard
    if link.is_symlink():
        folder = index.parent.resolve()
        target = Path(os.path.realpath(link))
        if target.is_relative_to(folder):
            return
        # models--org--name/snapshots/<commit>/<file> -> ../../blobs/<digest>
        is_cache = folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
        if not is_cache:
            raise unsafe("the shard is a symbolic link that leaves the folder")
