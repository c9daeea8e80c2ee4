"""Sharded models: ``*.index.json`` with a ``weight_map`` from tensor to file.

The index is written by strangers, so its file names are checked as text before any is opened: they may
name only files of the same folder. Links out of the folder are refused too, except those of the hub's
cache, whose ``snapshots/<commit>/`` hold links into ``blobs/``.
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
            raise MalformedInput(
                f"got {len(self.files) - len(missing)} of {len(self.files)} shards, expected all "
                f"(missing: {', '.join(map(printable, missing))})",
                remedy="download the missing files",
                file=self.path,
            )
        told_of: dict[str, set[str]] = defaultdict(set)
        for name, shard in self.shard_of.items():
            told_of[shard].add(name)
        tensors: dict[str, FileTensor] = {}
        for file in self.files:
            held = read_file(file)
            for name in held:
                if name in tensors:
                    fact = f"got it also in {tensors[name].path.name}, expected each tensor in one shard"
                    raise MalformedInput(fact, remedy=_AGAIN, file=file, tensor=name)
            _check_same(told_of[file.name], set(held), file)
            tensors.update(held)
        return tensors


def _check_same(told: set[str], held: set[str], file: Path) -> None:
    for names, verb in ((told - held, "lacks"), (held - told, "adds")):
        if names:
            fact = f"got a shard that {verb} {len(names)} tensors, expected exactly those of the index"
            raise MalformedInput(fact, remedy=_AGAIN, file=file, tensor=min(names))


def read_index(path: Path, *, suffixes: tuple[str, ...] = (".safetensors",)) -> ShardIndex:
    """Read an index and check where it points, before anything it names is opened.

    Raises:
        UnsafeInput: a name that leaves the folder (also through a link), or a file of another kind.
        MalformedInput: no ``weight_map`` of strings.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        fact = "got no weight_map from tensors to file names, expected one"
        raise MalformedInput(fact, remedy=_AGAIN, file=path)
    for shard in sorted(set(weight_map.values())):
        _check_inside(path, shard, suffixes)
    return ShardIndex(path=path, shard_of=weight_map)


def _check_inside(index: Path, shard: str, suffixes: tuple[str, ...]) -> None:
    def unsafe(fact: str) -> UnsafeInput:
        remedy = "do not use this model: its index reaches for other files"
        return UnsafeInput(fact, remedy=remedy, file=index, tensor=shard)

    separated = any(character in shard for character in "/\\:\0")
    if separated or shard in ("", ".", ".."):
        raise unsafe("got a shard name that is a path, expected a plain file name of the same folder")
    if not shard.endswith(suffixes):
        expected = " or ".join(suffixes)
        raise unsafe(f"got a shard of another kind, expected {expected}")
    link = index.parent / shard
    if link.is_symlink():
        folder = index.parent.resolve()
        target = Path(os.path.realpath(link))
        if target.is_relative_to(folder):
            return
        # models--org--name/snapshots/<commit>/<file> -> ../../blobs/<digest>
        is_cache = folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
        if not is_cache:
            raise unsafe("got a link that leaves the folder, expected the file itself")
