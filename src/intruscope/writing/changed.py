"""Tensors that a fine-tune changed and that are not matrices: biases, norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.vectors import trained_vectors
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.prefixes import find_prefixes
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.matrices import Pairing
    from intruscope.weights.stored import StoredTensor


def changed_tensors(
    base: ModelSource, tuned: ModelSource | AdapterSource, pairing: Pairing
) -> tuple[str, ...]:
    """Stored names, in the base, of the tensors that differ and are not in a matrix pair.

    Args:
        base: The opened base.
        tuned: The opened tuned model.
        pairing: Their paired matrices.

    Raises:
        MalformedInput: a file changed since planning.
    """
    if not isinstance(tuned, ModelSource):
        vectors = trained_vectors(tuned, base)
        return tuple(dict.fromkeys(v.target for v in vectors if v.target is not None))
    twins = tensor_twins(base, tuned, pairing)
    return tuple(name for name, after in twins.items() if differs(base.tensors[name], after))


def tensor_twins(base: ModelSource, tuned: ModelSource, pairing: Pairing) -> dict[str, StoredTensor]:
    """Tensors of the base that are not matrices, with their counterparts in the tuned checkpoint."""
    before, after = [], []
    for pair in pairing.pairs:
        if isinstance(pair.update, CheckpointUpdate):
            before.append(pair.base.tensor.name)
            after.append(pair.update.tuned.tensor.name)
    base_prefix, tuned_prefix = find_prefixes(before, after)
    tuned_of = {name.removeprefix(tuned_prefix): tensor for name, tensor in tuned.tensors.items()}
    paired = set(before)
    found = {}
    for name, tensor in base.tensors.items():
        twin = tuned_of.get(name.removeprefix(base_prefix))
        if name in paired or twin is None or twin.shape != tensor.shape:
            continue
        if tensor.decodable and twin.decodable:
            found[name] = twin
    return found


def differs(before: StoredTensor, after: StoredTensor) -> bool:
    """Whether two tensors of one shape hold different numbers."""
    if before.dtype == after.dtype:
        return any(one != two for one, two in zip(before.raw(), after.raw(), strict=True))
    return bool((before.read().double() != after.read().double()).any())
