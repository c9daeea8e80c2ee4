"""One matrix of several fine-tunes, from stored tensors to its figures: what a worker process runs.

Shape suffixes: O out, I in, R rank, T fine-tunes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from intruscope.adapters.alone import load_alone
from intruscope.compare.matrix_task import IndexedPair, MatrixComparison
from intruscope.compare.preflight import examine_merge
from intruscope.compare.records import MergeModule, PairModule
from intruscope.linalg.overlap import (
    directions,
    inner_of_directions,
    inner_product,
    mean_overlap,
    one_sided_spread,
    principal_angles,
    two_sided_spread,
)
from intruscope.linalg.random_spaces import largest_value_of_sum, random_smallest_angle, random_spaces
from intruscope.linalg.rotation import rotate_dense
from intruscope.linalg.sign_conflict import sign_conflicts
from intruscope.records.plain import plain
from intruscope.spectra.matrix import exact_arithmetic, seed_for, unusable, update_tensors, working
from intruscope.weights.matrices import DenseUpdate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from intruscope.compare.matrix_task import MatrixTask
    from intruscope.linalg.overlap import Directions, Form
    from intruscope.weights.matrices import Finding, LowRankUpdate, MatrixPair

FULL_DIRECTIONS = 32
"""Leading directions of an update that is not low-rank whose angles are compared by default."""


def compare_matrix(task: MatrixTask) -> dict[str, Any]:
    """Load, check and compare all updates of one matrix.

    Returns:
        The fields of a :class:`MatrixComparison` as plain data.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    with exact_arithmetic(task.settings.threads):
        return plain(_compared(task))  # type: ignore[no-any-return]


def _compared(task: MatrixTask) -> MatrixComparison:
    base_OI, forms, findings = load_updates(task)
    present = [place for place, form in enumerate(forms) if form is not None]
    known = {place: _directions(forms[place], task) for place in present}
    signs = sign_conflicts([forms[p] for p in present], seed=_seed(task, "signs")) if present else None
    energies = {place: _energy(forms[place], known[place]) for place in present}
    pairs = []
    for row, first in enumerate(present):
        for column, second in list(enumerate(present))[row + 1 :]:
            conflict = tuple(
                _finite(part[row, column])
                for part in (signs.share_TT, signs.error_TT, signs.shared_a_spread_TT)
            )
            inner = _inner(forms, known, first, second)
            module = _pair(task, known[first], known[second], inner, energies, (first, second), conflict)
            pairs.append(IndexedPair(first=first, second=second, module=module))
    if any(pair is not None and forms[place] is None for place, pair in enumerate(task.pairs)):
        return MatrixComparison(pairs=tuple(pairs), merge=None, findings=tuple(findings))
    merge = _merge(task, forms, known, energies)
    if base_OI is not None and task.scope == "paper":
        preflight, shared = examine_merge(base_OI, forms, task.name, task.settings)
        merge = replace(merge, preflight=preflight)
        pairs = [
            replace(
                pair,
                module=replace(pair.module, num_shared_intruders=shared[pair.first, pair.second]),
            )
            for pair in pairs
        ]
    return MatrixComparison(pairs=tuple(pairs), merge=merge, findings=tuple(findings))


# --- loading ---------------------------------------------------------------------------------------


def load_updates(task: MatrixTask) -> tuple[Tensor | None, list[Form | None], list[Finding]]:
    """The base, and each update as factors or as ΔW, all in one working precision."""
    findings: list[Finding] = []
    first = next(pair for pair in task.pairs if pair is not None)
    base: Tensor | None = None
    if task.has_base:
        stored = first.base.load()
        bad = unusable(stored, task.name, "base")
        if bad is not None:
            return None, [None] * len(task.pairs), [bad]
        base = working(stored)
    forms: list[Form | None] = []
    for place, pair in enumerate(task.pairs):
        form = None if pair is None else _form(pair, base, task.labels[place], findings)
        forms.append(form)
    tensors = [part for form in forms if form is not None for part in _parts(form)]
    wide = any(tensor.dtype == torch.float64 for tensor in [*tensors, *([base] if base is not None else [])])
    dtype = torch.float64 if wide else torch.float32
    return None if base is None else base.to(dtype), [_to(form, dtype) for form in forms], findings


def _form(pair: MatrixPair, base: Tensor | None, owner: str, findings: list[Finding]) -> Form | None:
    update: LowRankUpdate | DenseUpdate = load_alone(pair) if base is None else pair.update.load(base)
    for label, tensor in update_tensors(update).items():
        bad = unusable(tensor, pair.name, f"{label} of {owner}")
        if bad is not None:
            findings.append(bad)
            return None
    if not isinstance(update, DenseUpdate):
        return working(update.left_OR), working(update.right_RI)
    tuned = working(update.tuned_OI)
    if base is None:
        return tuned
    dtype = torch.promote_types(tuned.dtype, base.dtype)
    return tuned.to(dtype) - base.to(dtype)


def _parts(form: Form) -> tuple[Tensor, ...]:
    return form if isinstance(form, tuple) else (form,)


def _to(form: Form | None, dtype: torch.dtype) -> Form | None:
    if form is None:
        return None
    return (form[0].to(dtype), form[1].to(dtype)) if isinstance(form, tuple) else form.to(dtype)


# --- one pair --------------------------------------------------------------------------------------


def _directions(form: Form, task: MatrixTask) -> Directions:
    if isinstance(form, tuple):
        return directions(form, None)
    count = task.settings.directions or FULL_DIRECTIONS
    return directions(form, count, seed=_seed(task, "directions"))


def _energy(form: Form, known: Directions) -> float:
    return float(known.values_K.square().sum()) if known.is_whole else inner_product(form, form)


def _inner(
    forms: Sequence[Form | None], known: dict[int, Directions], first: int, second: int
) -> float:
    if known[first].is_whole and known[second].is_whole:
        return inner_of_directions(known[first], known[second])
    return inner_product(forms[first], forms[second])


def _pair(
    task: MatrixTask,
    first: Directions,
    second: Directions,
    inner: float,
    energies: dict[int, float],
    places: tuple[int, int],
    conflict: tuple[float | None, ...],
) -> PairModule:
    norms = math.sqrt(energies[places[0]]) * math.sqrt(energies[places[1]])
    cut = task.settings.directions
    sides = {}
    for side, one, two, size in (
        ("left", first.left_OK, second.left_OK, task.shape[0]),
        ("right", first.right_IK, second.right_IK, task.shape[1]),
    ):
        one, two = one[:, :cut], two[:, :cut]
        ranks = one.shape[1], two.shape[1]
        angles = principal_angles(one, two) if min(ranks) else torch.zeros(0, dtype=torch.float64)
        sides |= {
            f"{side}_angles": tuple(angles.tolist()),
            f"{side}_overlap": mean_overlap(angles),
            f"{side}_overlap_random": max(ranks) / size if min(ranks) else None,
            f"smallest_{side}_angle_random": random_smallest_angle(size, *ranks) if min(ranks) else None,
        }
    return PairModule(
        name=task.name,
        cosine=max(-1.0, min(1.0, inner / norms)) if norms > 0.0 else None,
        cosine_random_spread=two_sided_spread(task.shape),
        cosine_shared_a_spread=one_sided_spread(first, second),
        **sides,
        sign_conflict=conflict[0],
        sign_conflict_error=conflict[1],
        sign_conflict_random_spread=0.5 * two_sided_spread(task.shape),
        sign_conflict_shared_a_spread=conflict[2],
    )


# --- the sum ---------------------------------------------------------------------------------------


def _merge(
    task: MatrixTask,
    forms: Sequence[Form | None],
    known: dict[int, Directions],
    energies: dict[int, float],
) -> MergeModule:
    count = len(task.pairs)
    inner_TT = np.zeros((count, count))
    for first in known:
        for second in known:
            if first < second:
                inner_TT[first, second] = inner_TT[second, first] = _inner(forms, known, first, second)
        inner_TT[first, first] = energies[first]
    # Cancellation leaves rounding of the parts' size, which must not pass for a sum.
    total = max(0.0, float(inner_TT.sum()))
    parts = float(np.trace(inner_TT))
    is_zero = total <= 1e-24 * parts
    top = max((float(each.values_K[0]) for each in known.values() if len(each.values_K)), default=0.0)
    found, random, shared_a = _largest_values(task, forms, known) if top > 0.0 else (0.0, 0.0, None)
    return MergeModule(
        name=task.name,
        kind=task.kind,
        layer=task.layer,
        scope=task.scope,
        shape=task.shape,
        energies=tuple(energies.get(place, 0.0) for place in range(count)),
        shares=None if is_zero else tuple((inner_TT.sum(axis=1) / total).tolist()),
        energy_ratio=total / parts if parts > 0.0 else None,
        inflation=found / top if top > 0.0 else None,
        inflation_random=random / top if top > 0.0 else None,
        inflation_shared_a=None if shared_a is None else shared_a / top,
    )


def _largest_values(
    task: MatrixTask, forms: Sequence[Form | None], known: dict[int, Directions]
) -> tuple[float, float, float | None]:
    """Largest singular value of the sum, and its mean under both controls."""
    if not all(each.is_whole for each in known.values()):
        dense = [_dense(forms[place]) for place in known]
        turned = [rotate_dense(one, seed=_seed(task, f"rotated {i}")) for i, one in enumerate(dense)]
        return _largest(sum(dense[1:], dense[0]), task), _largest(sum(turned[1:], turned[0]), task), None
    parts = [each for each in known.values() if len(each.values_K)]
    ranks = [len(each.values_K) for each in parts]
    values = [each.values_K for each in parts]
    # Coordinates in the space that all of them span: the triangles of a QR factorisation.
    left, right = (
        torch.linalg.qr(torch.cat(side, dim=1), mode="r")[1].split(ranks, dim=1)
        for side in ([each.left_OK for each in parts], [each.right_IK for each in parts])
    )
    random, shared_a = [], []
    for trial in range(task.settings.null_trials):
        generator = np.random.default_rng(_seed(task, f"null {trial}"))
        drawn = random_spaces(task.shape[0], ranks, generator)
        random.append(largest_value_of_sum(drawn, values, random_spaces(task.shape[1], ranks, generator)))
        shared_a.append(largest_value_of_sum(drawn, values, right))
    return largest_value_of_sum(left, values, right), float(np.mean(random)), float(np.mean(shared_a))


def _largest(update: Tensor, task: MatrixTask) -> float:
    values = directions(update, 1, seed=_seed(task, "sum")).values_K
    return float(values[0]) if len(values) else 0.0


def _dense(form: Form | None) -> Tensor:
    assert form is not None
    return form[0] @ form[1] if isinstance(form, tuple) else form


def _seed(task: MatrixTask, purpose: str) -> int:
    return seed_for(task.settings.scanning, task.name, purpose)


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
