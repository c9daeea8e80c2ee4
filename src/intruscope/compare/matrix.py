"""One matrix of several fine-tunes, from stored tensors to its figures: what a worker process runs.

Shape suffixes: O out, I in, R rank, T fine-tunes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from intruscope.adapters.alone import load_alone
from intruscope.compare.matrix_task import IndexedPair, MatrixComparison
from intruscope.compare.preflight import examine_merge
from intruscope.compare.records import MergeModule, PairModule
from intruscope.linalg.forms import dense_of
from intruscope.linalg.overlap import (
    CANCELLED,
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
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from intruscope.compare.matrix_task import MatrixTask
    from intruscope.linalg.forms import Form
    from intruscope.linalg.overlap import Directions
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


class _Update(NamedTuple):
    """One fine-tune's update: its form, its leading directions and ‖ΔW‖_F²."""

    form: Form
    directions: Directions
    energy: float


def _compared(task: MatrixTask) -> MatrixComparison:
    base_OI, forms, findings = load_updates(task)
    updates = {place: _update(form, task) for place, form in enumerate(forms) if form is not None}
    pairs = _pairs(task, updates)
    is_readable = all(pair is None or form is not None for pair, form in zip(task.pairs, forms, strict=True))
    if not is_readable:
        return MatrixComparison(pairs=tuple(pairs), merge=None, findings=tuple(findings))
    merge = _merge(task, updates)
    if base_OI is not None and task.scope == "paper":
        preflight, shared = examine_merge(base_OI, forms, task.name, task.settings)
        merge = replace(merge, preflight=preflight)
        pairs = [
            replace(pair, module=replace(pair.module, num_shared_intruders=shared[pair.first, pair.second]))
            for pair in pairs
        ]
    return MatrixComparison(pairs=tuple(pairs), merge=merge, findings=tuple(findings))


def _update(form: Form, task: MatrixTask) -> _Update:
    count = None if isinstance(form, tuple) else task.settings.directions or FULL_DIRECTIONS
    found = directions(form, count, seed=_seed(task, "directions"))
    energy = float(found.values_K.square().sum()) if found.is_whole else inner_product(form, form)
    return _Update(form, found, energy)


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


# --- pairs -----------------------------------------------------------------------------------------


def _pairs(task: MatrixTask, updates: Mapping[int, _Update]) -> list[IndexedPair]:
    if len(updates) < 2:
        return []
    signs = sign_conflicts([update.form for update in updates.values()], seed=_seed(task, "signs"))
    found = []
    for (row, first), (column, second) in combinations(enumerate(updates), 2):
        module = _pair(
            task,
            updates[first],
            updates[second],
            share=_finite(signs.share_TT[row, column]),
            error=_finite(signs.error_TT[row, column]),
            spread=_finite(signs.shared_a_spread_TT[row, column]),
        )
        found.append(IndexedPair(first=first, second=second, module=module))
    return found


def _inner(first: _Update, second: _Update) -> float:
    if first.directions.is_whole and second.directions.is_whole:
        return inner_of_directions(first.directions, second.directions)
    return inner_product(first.form, second.form)


def _pair(
    task: MatrixTask,
    first: _Update,
    second: _Update,
    *,
    share: float | None,
    error: float | None,
    spread: float | None,
) -> PairModule:
    """Two updates of one matrix; the last three figures are of their sign conflict."""
    norms = math.sqrt(first.energy) * math.sqrt(second.energy)
    cut = task.settings.directions
    sides: dict[str, Any] = {}
    for side, size, one_NK, two_NK in (
        ("left", task.shape[0], first.directions.left_OK[:, :cut], second.directions.left_OK[:, :cut]),
        ("right", task.shape[1], first.directions.right_IK[:, :cut], second.directions.right_IK[:, :cut]),
    ):
        ranks = one_NK.shape[1], two_NK.shape[1]
        known = min(ranks) > 0
        angles = principal_angles(one_NK, two_NK) if known else one_NK.new_zeros(0)
        sides |= {
            f"{side}_angles": tuple(angles.tolist()),
            f"{side}_overlap": mean_overlap(angles),
            f"{side}_overlap_random": max(ranks) / size if known else None,
            f"smallest_{side}_angle_random": random_smallest_angle(size, *ranks) if known else None,
        }
    return PairModule(
        name=task.name,
        cosine=max(-1.0, min(1.0, _inner(first, second) / norms)) if norms > 0.0 else None,
        cosine_random_spread=two_sided_spread(task.shape),
        cosine_shared_a_spread=one_sided_spread(first.directions, second.directions),
        **sides,
        sign_conflict=share,
        sign_conflict_error=error,
        sign_conflict_random_spread=0.5 * two_sided_spread(task.shape),
        sign_conflict_shared_a_spread=spread,
    )


# --- the sum ---------------------------------------------------------------------------------------


def _merge(task: MatrixTask, updates: Mapping[int, _Update]) -> MergeModule:
    count = len(task.pairs)
    inner_TT = np.zeros((count, count))
    for place, update in updates.items():
        inner_TT[place, place] = update.energy
    for first, second in combinations(updates, 2):
        inner_TT[first, second] = inner_TT[second, first] = _inner(updates[first], updates[second])
    total, parts = max(0.0, float(inner_TT.sum())), float(np.trace(inner_TT))
    top = max((float(each.directions.values_K[:1].sum()) for each in updates.values()), default=0.0)
    found, random, shared_a = _largest_values(task, updates) if top > 0.0 else (0.0, 0.0, None)
    return MergeModule(
        name=task.name,
        kind=task.kind,
        layer=task.layer,
        scope=task.scope,
        shape=task.shape,
        energies=tuple(float(energy) for energy in np.diagonal(inner_TT)),
        shares=tuple((inner_TT.sum(axis=1) / total).tolist()) if total > CANCELLED * parts else None,
        energy_ratio=total / parts if parts > 0.0 else None,
        inflation=found / top if top > 0.0 else None,
        inflation_random=random / top if top > 0.0 else None,
        inflation_shared_a=None if shared_a is None else shared_a / top,
    )


def _largest_values(task: MatrixTask, updates: Mapping[int, _Update]) -> tuple[float, float, float | None]:
    """Largest singular value of the sum, and its mean under both controls."""
    if not all(update.directions.is_whole for update in updates.values()):
        dense = [dense_of(update.form) for update in updates.values()]
        turned = [rotate_dense(one, seed=_seed(task, f"rotated {i}")) for i, one in enumerate(dense)]
        return _largest(dense, task), _largest(turned, task), None
    parts = [update.directions for update in updates.values() if len(update.directions.values_K)]
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


def _largest(updates_OI: Sequence[Tensor], task: MatrixTask) -> float:
    total = torch.stack(list(updates_OI)).sum(dim=0)
    return float(directions(total, 1, seed=_seed(task, "sum")).values_K.sum())


def _seed(task: MatrixTask, purpose: str) -> int:
    return seed_for(task.settings.scanning, task.name, purpose)


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
