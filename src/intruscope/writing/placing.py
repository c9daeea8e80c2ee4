"""Whether a full checkpoint has a place for everything that an adapter holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.adapters.updates import SavedUpdate, TokensUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import UnsupportedFormat, printable

if TYPE_CHECKING:
    from collections.abc import Collection

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.matrices import MatrixPair, Pairing
    from intruscope.weights.source import ModelSource
    from intruscope.weights.views import TensorView


def check_mergeable(
    base: ModelSource, adapter: AdapterSource, pairing: Pairing, *, heads: Collection[str] = ()
) -> None:
    """Refuse a merge that would lose something or change a shape.

    Args:
        base: The opened base.
        adapter: The opened adapter.
        pairing: Their paired matrices.
        heads: Modules saved whole that the caller takes care of, by their names in the adapter or the base.

    Raises:
        UnsupportedFormat: the adapter holds something that the base has no place for.
    """

    def refuse(name: str, fact: str) -> UnsupportedFormat:
        return UnsupportedFormat(
            f"the merge would lose {fact}",
            remedy="write the adapter (without --merged), which keeps it, and merge that with PEFT",
            file=adapter.path,
            tensor=name,
        )

    targets = {vector.tensor.name: vector.target for vector in trained_vectors(adapter, base)}
    for entry in pairing.coverage:
        lost = entry.gap or entry.head is not None or targets.get(entry.tensor, "") is None
        if entry.origin == "adapter" and lost and _owner(entry.tensor) not in heads:
            raise refuse(entry.tensor, "a tensor that the base does not store (of a new head?)")
    for pair in pairing.pairs:
        view, update = pair.base, pair.update
        if _is_tied(pair, view):
            fact = f"{printable(pair.name)} as trained: the base ties it to its embedding"
            raise refuse(f"{pair.name}.weight", fact)
        if isinstance(update, TokensUpdate) and any(word >= update.num_words for word in update.indices):
            raise refuse(update.rows.name, "tokens that the base's vocabulary does not have")
        whole = update.tuned if isinstance(update, SavedUpdate) else None
        if isinstance(update, LoraUpdate):
            whole = update.replaced
        if whole is not None:
            name = whole.tensor.name
            if adapter.tensors[name].shape != base.tensors[view.tensor.name].shape:
                raise refuse(name, "the new rows of a resized vocabulary")


def _owner(key: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    return key.removeprefix(PEFT_PREFIX).rpartition(".")[0]


def _is_tied(pair: MatrixPair, view: TensorView) -> bool:
    """Whether a head's matrix is its embedding's tensor under another name."""
    whole = view.rows is None and view.expert is None
    return whole and pair.name != view.tensor.name.removesuffix(".weight")
