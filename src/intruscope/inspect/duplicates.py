"""Which adapters have the same update, however they are factored.

Two adapters with factors B, A and B G, G⁻¹ A have equal updates and no equal tensor. Their fingerprints
agree up to rounding, so they are compared by angle: there are no buckets whose boundary could part them.
Every candidate is then checked on the updates themselves.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.adapters.alone import load_alone
from intruscope.inspect.records import Duplicate
from intruscope.weights.matrices import LowRankUpdate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.alone import AloneAdapter
    from intruscope.inspect.records import InspectedAdapter
    from intruscope.weights.matrices import DenseUpdate

SAME = 0.01
"""Largest relative difference of updates that count as the same. Rounding both factors to bfloat16 moves an
update by about 0.3%."""
_LEAST_COSINE = 0.99
"""Smallest cosine between the fingerprints of candidates: updates within :data:`SAME` have cosines above
0.999, and independent ones of 16 probes have one above 0.99 once in 10^13 pairs."""


def find_duplicates(
    adapters: Sequence[InspectedAdapter], opened: Sequence[AloneAdapter | None]
) -> tuple[Duplicate, ...]:
    """Find every adapter whose update is that of an earlier one, or a multiple of it.

    Args:
        adapters: Measured; those that failed, and those whose update is zero, are duplicates of none.
        opened: The same, to read again where fingerprints agree; None for those that failed.

    Returns:
        Each duplicate once, with the first adapter that it repeats.

    Raises:
        MalformedInput: a file changed since it was opened.
    """
    firsts: list[int] = []
    found = []
    for index, adapter in enumerate(adapters):
        alone = opened[index]
        if adapter.fingerprint is None or not adapter.frobenius_norm or alone is None:
            continue
        for first in firsts:
            before = opened[first]
            assert before is not None
            if not _may_be_one(adapter, adapters[first]) or not _same_matrices(alone, before):
                continue
            duplicate = _compared(index, first, alone, before)
            if duplicate.relative_difference <= SAME:
                found.append(duplicate)
                break
        else:
            firsts.append(index)
    return tuple(found)


def _may_be_one(one: InspectedAdapter, other: InspectedAdapter) -> bool:
    assert one.fingerprint is not None
    assert other.fingerprint is not None
    lengths = math.hypot(*one.fingerprint) * math.hypot(*other.fingerprint)
    inner = math.fsum(a * b for a, b in zip(one.fingerprint, other.fingerprint, strict=True))
    return lengths > 0 and abs(inner) > _LEAST_COSINE * lengths


def _same_matrices(one: AloneAdapter, other: AloneAdapter) -> bool:
    shapes = [{pair.name: pair.base.shape for pair in each.pairs} for each in (one, other)]
    return shapes[0] == shapes[1]


def _compared(index: int, first: int, one: AloneAdapter, other: AloneAdapter) -> Duplicate:
    """Least squares over all matrices together, one matrix in memory at a time."""
    twin = {pair.name: pair for pair in other.pairs}
    square, square_before, inner = 0.0, 0.0, 0.0
    for pair in one.pairs:
        update, before = load_alone(pair), load_alone(twin[pair.name])
        square += _inner(update, update)
        square_before += _inner(before, before)
        inner += _inner(update, before)
    left = max(0.0, square - inner * inner / square_before)
    return Duplicate(
        adapter=index, of=first, scale=inner / square_before, relative_difference=math.sqrt(left / square)
    )


def _inner(one: LowRankUpdate | DenseUpdate, other: LowRankUpdate | DenseUpdate) -> float:
    """⟨ΔW, ΔW'⟩, without forming a product of factors."""
    if isinstance(one, LowRankUpdate):
        left_OR, right_RI = one.left_OR.double(), one.right_RI.double()
        if isinstance(other, LowRankUpdate):
            core = (left_OR.T @ other.left_OR.double()) * (right_RI @ other.right_RI.double().T)
        else:
            core = (left_OR.T @ other.tuned_OI.double()) * right_RI
        return float(core.sum())
    if isinstance(other, LowRankUpdate):
        return _inner(other, one)
    return float((one.tuned_OI.double() * other.tuned_OI.double()).sum())
