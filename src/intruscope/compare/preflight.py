"""Intruders of the merge, of its parts and of its controls, in one matrix.

Shape suffixes: O out, I in, R rank, K kept vectors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from intruscope.compare.records import IntruderCount, Preflight
from intruscope.linalg.analysis import analyse
from intruscope.linalg.dense import DenseSides
from intruscope.linalg.forms import dense_of
from intruscope.linalg.overlap import CANCELLED, SAME_SQUARED, inner_product, outside_span
from intruscope.linalg.rotation import rotate_dense, rotate_low_rank
from intruscope.spectra.matrix import Change, seed_for
from intruscope.spectra.sides import verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.compare.settings import CompareSettings
    from intruscope.linalg.forms import Form


class _Intruders(NamedTuple):
    figures: IntruderCount
    left_OK: Tensor
    values_K: Tensor
    num_vectors: int


def examine_merge(
    base_OI: Tensor, forms: Sequence[Form | None], name: str, settings: CompareSettings
) -> tuple[Preflight, dict[tuple[int, int], int]]:
    """Count the intruders of each part, of the merge and of the controls.

    Args:
        base_OI: The base, float32 or float64.
        forms: The update of each fine-tune in the same dtype; None for no change.
        name: The matrix, for the seeds.
        settings: What is computed.

    Returns:
        The counts, and for each pair of fine-tunes (by place) the number of intruders that they share.
    """
    weight = settings.weight or 1.0 / len(forms)
    shared = DenseSides()

    def seed(purpose: str) -> int:
        return seed_for(settings.scanning, name, purpose)

    def find(form: Form | None, purpose: str, among: Sequence[_Intruders] | None = None) -> _Intruders:
        return _intruders(base_OI, form, settings, seed(purpose), shared, among)

    parts = [find(form, f"part {place}") for place, form in enumerate(forms)]
    turned = [
        None if form is None else _rotated(form, seed(f"rotated {place}")) for place, form in enumerate(forms)
    ]
    random_parts = [find(form, f"random {place}") for place, form in enumerate(turned)]
    total = weighted_sum(forms, 1.0)
    merge = find(weighted_sum(forms, weight), "merge", parts)
    random_merge = find(weighted_sum(turned, weight), "random merge", random_parts)
    equal = find(_scaled(total, _equal_norm(forms, total)), "equal norm", parts)
    preflight = Preflight(
        num_vectors=merge.num_vectors,
        base_energy=float(torch.linalg.vector_norm(base_OI.double()).square()),
        parts=tuple(part.figures for part in parts),
        merge=merge.figures,
        random_parts=tuple(part.figures for part in random_parts),
        random_merge=random_merge.figures,
        equal_norm=equal.figures,
    )
    return preflight, {
        (first, second): _num_shared(parts[first].left_OK, parts[second].left_OK)
        for first in range(len(parts))
        for second in range(first + 1, len(parts))
    }


def weighted_sum(forms: Sequence[Form | None], weight: float) -> Form | None:
    """``weight`` times the sum of updates: factors side by side, or a matrix where any is one.

    Returns:
        None where all are.
    """
    present = [form for form in forms if form is not None]
    if not present:
        return None
    if all(isinstance(form, tuple) for form in present):
        left_OR = torch.cat([weight * form[0] for form in present], dim=1)
        return left_OR, torch.cat([form[1] for form in present], dim=0)
    dense = [dense_of(form) for form in present]
    return weight * sum(dense[1:], dense[0])


def _scaled(form: Form | None, factor: float) -> Form | None:
    return weighted_sum([form], factor)


def _rotated(form: Form, seed: int) -> Form:
    return rotate_low_rank(*form, seed=seed) if isinstance(form, tuple) else rotate_dense(form, seed=seed)


def _equal_norm(forms: Sequence[Form | None], total: Form | None) -> float:
    """The factor that gives the sum the root-mean-square norm of the parts."""
    if total is None:
        return 1.0
    parts = sum(inner_product(form, form) for form in forms if form is not None)
    whole = inner_product(total, total)
    return math.sqrt(parts / len(forms) / whole) if whole > CANCELLED * parts else 1.0


def _intruders(
    base_OI: Tensor,
    form: Form | None,
    settings: CompareSettings,
    seed: int,
    shared: DenseSides,
    among: Sequence[_Intruders] | None,
) -> _Intruders:
    """The intruders of the base plus one update, and those of them that ``among`` has not."""
    num_vectors = min(settings.k, *base_OI.shape)
    if form is None:
        zero = None if among is None else 0
        none = base_OI.new_zeros((base_OI.shape[0], 0), dtype=torch.float64)
        count = IntruderCount(
            num_intruders=0,
            num_undecided=0,
            energy=0.0,
            num_new=zero,
            new_energy=None if zero is None else 0.0,
        )
        return _Intruders(count, none, none[0], num_vectors)
    change = Change(base_OI, form if isinstance(form, tuple) else base_OI + form, shared)
    update: Mapping[str, Any] = change.keywords
    found = analyse(
        base_OI,
        **update,
        k=settings.k,
        thresholds=(settings.epsilon,),
        deciding=settings.epsilon,
        seed=seed,
        shared=shared,
    )
    values = found.spectrum.singular_values
    verdicts = [verdict(found.sides["left"], i, settings.epsilon) for i in range(len(values))]
    kept = [i for i, each in enumerate(verdicts) if each == "intruder"]
    left_OK, energies = found.spectrum.left_MK[:, kept].double(), values[kept].square()
    new = None if among is None else outside_span(left_OK, torch.cat([each.left_OK for each in among], dim=1))
    count = IntruderCount(
        num_intruders=len(kept),
        num_undecided=sum(each in ("borderline", "degenerate") for each in verdicts),
        energy=float(energies.sum()),
        num_new=None if new is None else int(new.sum()),
        new_energy=None if new is None else float(energies[new].sum()),
    )
    return _Intruders(count, left_OK, values[kept], len(values))


def _num_shared(first_OK: Tensor, second_OK: Tensor) -> int:
    """Number of columns of the first that match one of the second; each column matches one at most."""
    return int(((first_OK.T @ second_OK).square() > SAME_SQUARED).sum())
