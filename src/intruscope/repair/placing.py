"""Whether a full checkpoint can be written, and can hold everything that an adapter did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.keys import sort_keys
from intruscope.adapters.pairing import Match, adapted_matrices
from intruscope.adapters.updates import TokensUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import UnsupportedFormat, printable
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from intruscope.repair.survey import Survey

_KEEP_REMEDY = "write the adapter (without --merged), which keeps it, and merge that with PEFT"


def check_copyable(source: ModelSource) -> None:
    """Refuse a checkpoint that cannot be written as it is stored.

    Raises:
        UnsupportedFormat: it is stored as pickles.
    """
    pickle = next((t.path for t in source.tensors.values() if t.path.suffix != ".safetensors"), None)
    if pickle is not None:
        raise UnsupportedFormat(
            "got a checkpoint of pickles, which is read but not written, expected safetensors",
            remedy="save it with save_pretrained first",
            file=pickle,
        )


def check_mergeable(found: Survey) -> None:
    """Refuse to merge what would be lost or need another shape, by name.

    Raises:
        UnsupportedFormat: the adapter holds something that the base has no place for.
    """
    adapter, base = found.tuned, found.base
    assert not isinstance(adapter, ModelSource)

    def refuse(name: str, fact: str) -> UnsupportedFormat:
        return UnsupportedFormat(
            f"{fact}, expected an adapter whose every tensor has a place in the base's files",
            remedy=_KEEP_REMEDY,
            file=adapter.path,
            tensor=name,
        )

    modules, _ = sort_keys(adapter)
    match = Match(modules, adapted_matrices(base, adapter).matrices, base, adapter)
    paired = {
        tensor
        for entry in found.pairing.coverage
        if entry.origin == "adapter" and entry.status == "compared"
        for tensor in [entry.tensor]
    }
    for name, module in modules.items():
        if name in match.tied:
            first = next(iter(module.roles.values())).name
            raise refuse(first, f"got {printable(name)} apart from the embedding that the base ties it to")
        stored = match.stored.get(name)
        lost = next((t.name for t in module.roles.values() if t.name not in paired), None)
        if lost is not None:
            raise refuse(lost, f"got {printable(name)}, which the base does not store (a new head?)")
        whole = module.roles.get("saved") or module.roles.get("replaced")
        if whole is not None and stored is not None and whole.shape != base.tensors[stored].shape:
            raise refuse(whole.name, "got a resized vocabulary")
    for pair in found.pairing.pairs:
        update = pair.update
        if isinstance(update, TokensUpdate) and any(word >= update.num_words for word in update.indices):
            raise refuse(update.rows.name, "got words that the base's vocabulary does not have")
    for vector in trained_vectors(adapter, base):
        if vector.target is None:
            raise refuse(vector.tensor.name, "got a vector that the base does not store")
