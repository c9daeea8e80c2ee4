"""The intruder edit and its controls: the same interface, pure, and cheap once a survey is there.

``intruders`` is the paper's intervention, W + (λ − 1) σᵢ uᵢ vᵢᵀ. Every other kind is a control that tells the
intruders' part from that of a mere shrink. ``matched_change``, ``matched_result`` and ``tail`` act on the
whole update of the surveyed matrices at once, so that their norm can be that of the intruder edit exactly,
summed over the model; ``random`` and the neighbours act where the intruder edit does.

Shape suffixes: O out, I in, K edited directions, R rank of an update.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal, get_args

from intruscope.errors import UsageError, printable
from intruscope.repair.edits import MatrixEdit, scaled_update
from intruscope.repair.naming import parse_which
from intruscope.weights.names import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from intruscope.repair.survey import Survey, SurveyedMatrix

Kind = Literal[
    "intruders",
    "uniform",
    "matched_change",
    "matched_result",
    "random",
    "neighbour_above",
    "neighbour_below",
    "tail",
    "interpolation",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


def intervene(
    survey: Survey, *, kind: Kind = "intruders", strength: float, which: str = "top", seed: int = 0
) -> tuple[MatrixEdit, ...]:
    """What one intervention does to each matrix.

    Args:
        survey: Of the model.
        kind: ``intruders``: each selected σ is multiplied by the strength.
            ``uniform``: the update of every surveyed matrix is.
            ``matched_change``: one factor for all these updates, so that the change has the Frobenius norm
            (over all matrices) of the intruder edit at this strength and selection; where that exceeds the
            whole update, the update is removed and the change stays smaller (see :func:`change_norm`).
            ``matched_result``: one factor, so that the resulting update has the norm of the intruder edit's.
            ``random``: for each selected intruder a random direction pair is changed by as much.
            ``neighbour_above``, ``neighbour_below``: the nearest base-like (``aligned``) kept vector with a
            larger or a smaller singular value is scaled instead; an intruder without one adds nothing.
            ``tail``: the smallest singular values of the updates, up to the norm of the intruder edit, are
            taken away (or, above strength 1, added once more).
            ``interpolation``: everything that the fine-tune changed moves towards the base: also
            embeddings, heads, biases and norms.
        strength: λ, the retained fraction; 1 changes nothing, 0 removes, above 1 grows.
        which: ``top`` (the highest intruder of each matrix), ``all``, or names with indices; see
            :func:`intruscope.repair.naming.parse_which`. Of no meaning for ``uniform`` and ``interpolation``.
        seed: Of the random directions, which depend on it and on the matrix's name alone.

    Returns:
        One edit for each matrix that changes, in the order of the survey.

    Raises:
        UsageError: a strength that is not a finite number of at least 0, an unknown kind or selection, or
            ``tail`` without the singular vectors of a full update.

    Source: arXiv 2410.21228v3, section 5 (``intruders``, the neighbours); the others answer its discussion.
    """
    strength = checked_strength(strength)
    if kind not in KINDS:
        raise UsageError(
            f"got the intervention '{printable(kind)}', expected one of {', '.join(KINDS)}",
            remedy="choose one of these",
        )
    chosen = selected(survey, which)
    if strength == 1.0:
        return ()
    by_name = {matrix.name: matrix for matrix in survey.matrices}
    if kind == "uniform":
        return tuple(scaled_update(name, strength) for name in by_name)
    if kind == "interpolation":
        return tuple(
            scaled_update(name, strength) for name in (*by_name, *survey.others, *survey.other_tensors)
        )
    if kind == "matched_change":
        return _scaled_all(survey, _matched_change(survey, chosen, strength))
    if kind == "matched_result":
        return _scaled_all(survey, _matched_result(survey, chosen, strength))
    if kind == "tail":
        return _tail(survey, _budget(survey, chosen, strength), grows=strength > 1.0)
    edit = _DIRECTIONAL[kind]
    edits = (edit(by_name[name], indices, strength, seed) for name, indices in chosen.items())
    return tuple(found for found in edits if found is not None)


def checked_strength(strength: float) -> float:
    """A strength that means something.

    Raises:
        UsageError: it is not finite, or negative.
    """
    if not (math.isfinite(strength) and strength >= 0.0):
        raise UsageError(
            f"the strength is {strength:g}, but must be a finite number of at least 0",
            remedy="0 removes, 1 changes nothing, above 1 amplifies; try 0.7",
        )
    return float(strength)


def selected(survey: Survey, which: str) -> dict[str, tuple[int, ...]]:
    """The vectors that an intruder edit acts on: matrix to indices by falling singular value.

    Raises:
        UsageError: a name that no surveyed matrix has, or an index past the kept vectors.
    """
    parsed = parse_which(which)
    if isinstance(parsed, str):
        taken = {m.name: m.intruders[:1] if parsed == "top" else m.intruders for m in survey.matrices}
        return {name: indices for name, indices in taken.items() if indices}
    by_name = {matrix.name: matrix for matrix in survey.matrices}
    gathered: dict[str, set[int]] = {}
    for item in parsed:
        for name in matching(item.pattern, list(by_name)):
            matrix = by_name[name]
            indices = (
                item.vectors
                if isinstance(item.vectors, tuple)
                else matrix.intruders[:1]
                if item.vectors == "top"
                else matrix.intruders
            )
            if indices and max(indices) >= len(matrix.values_K):
                raise UsageError(
                    f"{printable(name)} has no vector {max(indices)}: only its top {len(matrix.values_K)} "
                    "were kept, counted from 0",
                    remedy="increase k, or use a smaller index",
                )
            gathered.setdefault(name, set()).update(indices)
    return {name: tuple(sorted(gathered[name])) for name in by_name if gathered.get(name)}


def change_norm(survey: Survey, edits: Sequence[MatrixEdit]) -> float:
    """‖W' − W‖_F over all surveyed matrices together; what else an edit touches is not counted.

    Every kind here changes a matrix either by a share of its update or along orthonormal directions.
    """
    by_name = {matrix.name: matrix for matrix in survey.matrices}
    total = 0.0
    for edit in edits:
        if edit.name in by_name:
            total += ((1.0 - edit.update_scale) * by_name[edit.name].update_norm) ** 2
            total += float(edit.change_K.square().sum())
    return math.sqrt(total)


# --- along single directions -----------------------------------------------------------------------


def _along(
    matrix: SurveyedMatrix, left_OK: torch.Tensor, change_K: torch.Tensor, right_IK: torch.Tensor
) -> MatrixEdit:
    return MatrixEdit(
        name=matrix.name, update_scale=1.0, left_OK=left_OK, change_K=change_K, right_IK=right_IK
    )


def _intruders(matrix: SurveyedMatrix, indices: Sequence[int], strength: float, _seed: int) -> MatrixEdit:
    kept = list(indices)
    return _along(
        matrix,
        matrix.left_OK[:, kept],
        (strength - 1.0) * matrix.values_K[kept],
        matrix.right_IK[:, kept],
    )


def _random(matrix: SurveyedMatrix, indices: Sequence[int], strength: float, seed: int) -> MatrixEdit:
    """Orthonormal among themselves, so that the norm of the change is the same; to nothing else."""
    import torch

    digest = hashlib.sha256(f"{seed}\0{matrix.name}\0random".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def directions(size: int) -> torch.Tensor:
        # One column at a time: the first direction is the same however many there are.
        drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in indices]
        basis: torch.Tensor = torch.linalg.qr(torch.stack(drawn, dim=1))[0]
        return basis

    rows, columns = matrix.report.shape
    change_K = (strength - 1.0) * matrix.values_K[list(indices)]
    return _along(matrix, directions(rows), change_K, directions(columns))


def _neighbour(
    matrix: SurveyedMatrix, indices: Sequence[int], strength: float, seed: int, *, step: Literal[-1, 1]
) -> MatrixEdit | None:
    """The nearest base-like vector on one side of each; each vector once."""
    taken: list[int] = []
    for index in indices:
        at = index + step
        while 0 <= at < len(matrix.verdicts) and (matrix.verdicts[at] != "aligned" or at in taken):
            at += step
        if 0 <= at < len(matrix.verdicts):
            taken.append(at)
    return _intruders(matrix, taken, strength, seed) if taken else None


def _above(matrix: SurveyedMatrix, indices: Sequence[int], strength: float, seed: int) -> MatrixEdit | None:
    return _neighbour(matrix, indices, strength, seed, step=-1)


def _below(matrix: SurveyedMatrix, indices: Sequence[int], strength: float, seed: int) -> MatrixEdit | None:
    return _neighbour(matrix, indices, strength, seed, step=1)


_DIRECTIONAL: Mapping[str, Callable[[SurveyedMatrix, Sequence[int], float, int], MatrixEdit | None]] = {
    "intruders": _intruders,
    "random": _random,
    "neighbour_above": _above,
    "neighbour_below": _below,
}


# --- of the whole update ---------------------------------------------------------------------------


def _scaled_all(survey: Survey, factor: float) -> tuple[MatrixEdit, ...]:
    if factor == 1.0:
        return ()
    return tuple(scaled_update(matrix.name, factor) for matrix in survey.matrices)


def _budget(survey: Survey, chosen: Mapping[str, Sequence[int]], strength: float) -> float:
    """‖change‖_F of the intruder edit over all matrices."""
    squares = sum(
        float(matrix.values_K[list(chosen[matrix.name])].square().sum())
        for matrix in survey.matrices
        if matrix.name in chosen
    )
    return abs(strength - 1.0) * math.sqrt(squares)


def _matched_change(survey: Survey, chosen: Mapping[str, Sequence[int]], strength: float) -> float:
    whole = math.sqrt(sum(matrix.update_norm**2 for matrix in survey.matrices))
    if whole == 0.0:
        return 1.0
    share = _budget(survey, chosen, strength) / whole
    return 1.0 + share if strength > 1.0 else max(0.0, 1.0 - share)


def _matched_result(survey: Survey, chosen: Mapping[str, Sequence[int]], strength: float) -> float:
    before = after = 0.0
    for matrix in survey.matrices:
        kept = list(chosen.get(matrix.name, ()))
        change_K = (strength - 1.0) * matrix.values_K[kept]
        square = matrix.update_norm**2
        before += square
        # ‖ΔW + U C Vᵀ‖² = ‖ΔW‖² + 2 Σ c uᵀΔW v + Σ c²
        crossed = float((change_K * matrix.core_KK.diagonal()[kept]).sum())
        after += max(0.0, square + 2.0 * crossed + float(change_K.square().sum()))
    return math.sqrt(after / before) if before > 0.0 else 1.0


def _tail(survey: Survey, budget: float, *, grows: bool) -> tuple[MatrixEdit, ...]:
    import torch

    if budget == 0.0:
        return ()
    missing = next((m.name for m in survey.matrices if m.update_svd is None), None)
    if missing is not None:
        raise UsageError(
            f"got a full update of {printable(missing)} without its singular vectors, which the control "
            "'tail' cuts, expected them",
            remedy="survey with update_spectra=True (dense, slow on large matrices), or leave tail out",
        )
    parts = [m.update_svd[1] for m in survey.matrices if m.update_svd is not None]
    values = torch.cat(parts)
    order = torch.argsort(values, stable=True)
    before = values[order].square().cumsum(dim=0) - values[order].square()
    # Whole values while the budget lasts, of the next one what is left of it.
    taken = (budget**2 - before).clamp(min=0.0).sqrt().minimum(values[order])
    removed = torch.empty_like(values)
    removed[order] = taken
    edits = []
    for matrix, part in zip(survey.matrices, torch.split(removed, [len(p) for p in parts]), strict=True):
        assert matrix.update_svd is not None
        left_OR, _, right_IR = matrix.update_svd
        kept = torch.nonzero(part > 0.0).flatten()
        if len(kept):
            change_K = part[kept] if grows else -part[kept]
            edits.append(_along(matrix, left_OR[:, kept], change_K, right_IR[:, kept]))
    return tuple(edits)
