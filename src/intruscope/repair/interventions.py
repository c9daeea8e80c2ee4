"""The intruder edit and its controls: one table of pure functions, cheap once a survey exists.

``intruders`` is the paper's intervention, W + (λ − 1) σᵢ uᵢ vᵢᵀ. Every other entry of :data:`INTERVENTIONS`
is a control, which separates the effect of the intruders from that of merely shrinking the update.
``matched_change``, ``matched_result`` and ``tail`` act on the updates of all surveyed matrices at once, so
that their norm, summed over the model, can equal that of the intruder edit; ``random`` and the neighbours
act on the same matrices as the intruder edit.

To add a control, write its function and add it to the table. The command line, sweeps, pages and pictures
take everything they need from there.

Shape suffixes: O out, I in, K edited directions, R rank of an update.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from intruscope.errors import UsageError, printable
from intruscope.repair.edits import MatrixEdit, scaled_update
from intruscope.repair.naming import parse_which
from intruscope.weights.names import matching

if TYPE_CHECKING:
    import torch

    from intruscope.repair.survey import Survey, SurveyedMatrix

Selection: TypeAlias = Mapping[str, Sequence[int]]
"""Matrix name to indices of its singular vectors, by falling singular value."""


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """The intruder edit, or a control that it is compared with.

    Attributes:
        name: On the command line and in JSON.
        title: In tables, pages and pictures.
        action: In sentences: "shrinking the whole update".
        explanation: What it does, in one or two sentences, for pages.
        make_edits: From a survey, the selected vectors, a strength other than 1 and a seed to edits.
        role: ``edit`` for the intruder edit. ``matched`` for a shrink of the update by the same norm as the
            edit, which the intruders must beat to be special. ``shrink`` for the whole update times the
            strength. ``other`` for the rest, which pages hide at first.
        uses_selection: Depends on which intruders are selected.
        needs_update_vectors: Needs the singular vectors of every update; a survey finds them on request.
        moves_everything: Also moves what is not a matrix: a live model is interpolated as a whole.
    """

    name: str
    title: str
    action: str
    explanation: str
    make_edits: Callable[[Survey, Selection, float, int], Iterable[MatrixEdit]]
    role: Literal["edit", "matched", "shrink", "other"] = "other"
    uses_selection: bool = True
    needs_update_vectors: bool = False
    moves_everything: bool = False


def intervene(
    survey: Survey, *, kind: str = "intruders", strength: float, which: str = "top", seed: int = 0
) -> tuple[MatrixEdit, ...]:
    """What one intervention does to each matrix.

    Args:
        survey: Of the model.
        kind: Name in :data:`INTERVENTIONS`, where each entry explains what it does.
        strength: λ, the fraction that is kept; 1 changes nothing, 0 removes, above 1 grows.
        which: ``top`` (the highest intruder of each matrix), ``all``, or names with indices; see
            :func:`intruscope.repair.naming.parse_which`. Ignored by ``uniform`` and ``interpolation``.
        seed: Random seed. The random directions depend on it and on the matrix's name alone.

    Returns:
        One edit for each matrix that changes, in the order of the survey.

    Raises:
        UsageError: a strength that is not a finite number of at least 0, an unknown kind or selection, or
            ``tail`` without the singular vectors of a full update.

    Source: arXiv 2410.21228v3, section 5 (``intruders``, the neighbours); the others answer its discussion.
    """
    strength = checked_strength(strength)
    intervention = find_intervention(kind)
    chosen = selected(survey, which)
    if strength == 1.0:
        return ()
    return tuple(intervention.make_edits(survey, chosen, strength, seed))


def find_intervention(name: str) -> Intervention:
    """Look an intervention up in :data:`INTERVENTIONS`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in INTERVENTIONS:
        raise UsageError(
            f"there is no control named '{printable(name)}'",
            remedy=f"choose from {', '.join(INTERVENTIONS)}",
        )
    return INTERVENTIONS[name]


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
        taken = {matrix.name: _indices(matrix, parsed) for matrix in survey.matrices}
        return {name: indices for name, indices in taken.items() if indices}
    by_name = {matrix.name: matrix for matrix in survey.matrices}
    gathered: dict[str, set[int]] = {}
    for item in parsed:
        for name in matching(item.pattern, list(by_name)):
            matrix = by_name[name]
            indices = _indices(matrix, item.vectors)
            if indices and max(indices) >= len(matrix.values_K):
                raise UsageError(
                    f"{printable(name)} has no vector {max(indices)}: only its top {len(matrix.values_K)} "
                    "were kept, counted from 0",
                    remedy="increase k, or use a smaller index",
                )
            gathered.setdefault(name, set()).update(indices)
    return {name: tuple(sorted(gathered[name])) for name in by_name if gathered.get(name)}


def _indices(matrix: SurveyedMatrix, vectors: str | tuple[int, ...]) -> tuple[int, ...]:
    """Those that ``top``, ``all`` or a list of indices means in one matrix."""
    if isinstance(vectors, tuple):
        return vectors
    return matrix.intruders[:1] if vectors == "top" else matrix.intruders


def change_norm(survey: Survey, edits: Sequence[MatrixEdit]) -> float:
    """‖W' − W‖_F over all surveyed matrices together; what else an edit touches is not counted."""
    by_name = {matrix.name: matrix for matrix in survey.matrices}
    return math.hypot(*(edit_norm(edit, by_name[edit.name]) for edit in edits if edit.name in by_name))


def edit_norm(edit: MatrixEdit, matrix: SurveyedMatrix) -> float:
    """‖W' − W‖_F of one matrix; the directions of an edit are orthonormal.

    ‖s ΔW + Σ c u vᵀ‖² = s² ‖ΔW‖² + 2 s Σ c uᵀ ΔW v + Σ c², s being the scale minus 1. An edit that has both
    parts runs along singular directions of the update, which the survey then knows.
    """
    scale = edit.update_scale - 1.0
    crossed = 0.0
    if scale and edit.num_directions and matrix.update_svd is not None:
        left_OR, values_R, right_IR = matrix.update_svd
        along_K = ((edit.left_OK.T @ left_OR) * values_R * (edit.right_IK.T @ right_IR)).sum(dim=1)
        crossed = float((edit.change_K * along_K).sum())
    square = (scale * matrix.update_norm) ** 2 + 2.0 * scale * crossed
    return math.sqrt(max(0.0, square + float(edit.change_K.square().sum())))


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


def _along_selected(
    edit: Callable[[SurveyedMatrix, Sequence[int], float, int], MatrixEdit | None],
) -> Callable[[Survey, Selection, float, int], Iterable[MatrixEdit]]:
    """Apply a rule for one matrix to every matrix that has selected vectors."""

    def make_edits(survey: Survey, chosen: Selection, strength: float, seed: int) -> Iterable[MatrixEdit]:
        by_name = {matrix.name: matrix for matrix in survey.matrices}
        edits = (edit(by_name[name], indices, strength, seed) for name, indices in chosen.items())
        return (found for found in edits if found is not None)

    return make_edits


# --- of the whole update ---------------------------------------------------------------------------


def _uniform(survey: Survey, _chosen: Selection, strength: float, _seed: int) -> Iterable[MatrixEdit]:
    return (scaled_update(matrix.name, strength) for matrix in survey.matrices)


def _interpolation(survey: Survey, _chosen: Selection, strength: float, _seed: int) -> Iterable[MatrixEdit]:
    names = (*(matrix.name for matrix in survey.matrices), *survey.others, *survey.other_tensors)
    return (scaled_update(name, strength) for name in names)


def _budget(survey: Survey, chosen: Selection, strength: float) -> float:
    """‖change‖_F of the intruder edit over all matrices."""
    squares = sum(
        float(matrix.values_K[list(chosen[matrix.name])].square().sum())
        for matrix in survey.matrices
        if matrix.name in chosen
    )
    return abs(strength - 1.0) * math.sqrt(squares)


def _matched_change(survey: Survey, chosen: Selection, strength: float, seed: int) -> Iterable[MatrixEdit]:
    whole = math.sqrt(sum(matrix.update_norm**2 for matrix in survey.matrices))
    if whole == 0.0:
        return ()
    share = _budget(survey, chosen, strength) / whole
    factor = 1.0 + share if strength > 1.0 else max(0.0, 1.0 - share)
    return _uniform(survey, chosen, factor, seed) if factor != 1.0 else ()


def _matched_result(survey: Survey, chosen: Selection, strength: float, seed: int) -> Iterable[MatrixEdit]:
    before = after = 0.0
    for matrix in survey.matrices:
        kept = list(chosen.get(matrix.name, ()))
        change_K = (strength - 1.0) * matrix.values_K[kept]
        square = matrix.update_norm**2
        before += square
        # ‖ΔW + U C Vᵀ‖² = ‖ΔW‖² + 2 Σ c uᵀΔW v + Σ c²
        crossed = float((change_K * matrix.core_KK.diagonal()[kept]).sum())
        after += max(0.0, square + 2.0 * crossed + float(change_K.square().sum()))
    factor = math.sqrt(after / before) if before > 0.0 else 1.0
    return _uniform(survey, chosen, factor, seed) if factor != 1.0 else ()


def _tail(survey: Survey, chosen: Selection, strength: float, _seed: int) -> Iterable[MatrixEdit]:
    import torch

    budget = _budget(survey, chosen, strength)
    if budget == 0.0:
        return ()
    missing = next((m.name for m in survey.matrices if m.update_svd is None), None)
    if missing is not None:
        raise UsageError(
            f"the control 'tail' needs the singular vectors of the update of {printable(missing)}",
            remedy="survey with update_spectra=True (dense, slow on large matrices), or leave out tail",
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
            change_K = part[kept] if strength > 1.0 else -part[kept]
            edits.append(_along(matrix, left_OR[:, kept], change_K, right_IR[:, kept]))
    return edits


# --- the table -------------------------------------------------------------------------------------

INTERVENTIONS: dict[str, Intervention] = {
    each.name: each
    for each in (
        Intervention(
            name="intruders",
            title="intruders turned down",
            action="turning the intruders down",
            explanation="The edit itself: the singular value of the highest intruder of each matrix (or of "
            "every selected vector) is multiplied by the strength.",
            make_edits=_along_selected(_intruders),
            role="edit",
        ),
        Intervention(
            name="uniform",
            title="whole update shrunk",
            action="shrinking the whole update",
            explanation="The update of every surveyed matrix is multiplied by the strength.",
            make_edits=_uniform,
            role="shrink",
            uses_selection=False,
        ),
        Intervention(
            name="matched_change",
            title="update shrunk, equal change",
            action="shrinking the whole update by the same norm",
            explanation="All updates are multiplied by one factor, so that the change has the same Frobenius "
            "norm, over the model, as that of the intruder edit. Where the edit changes more than the whole "
            "update, the update is removed and the change stays smaller.",
            make_edits=_matched_change,
            role="matched",
        ),
        Intervention(
            name="matched_result",
            title="update shrunk, equal result",
            action="shrinking the whole update to the same norm",
            explanation="All updates are multiplied by one factor, so that what remains of them has the same "
            "Frobenius norm, over the model, as after the intruder edit.",
            make_edits=_matched_result,
            role="matched",
        ),
        Intervention(
            name="random",
            title="random directions, equal change",
            action="changing random directions by as much",
            explanation="Instead of each selected intruder, a random pair of directions changes by as much.",
            make_edits=_along_selected(_random),
        ),
        Intervention(
            name="neighbour_above",
            title="neighbour above turned down",
            action="turning down the neighbours above",
            explanation="Instead of each selected intruder, the nearest vector above it that does match the "
            "base is multiplied by the strength; an intruder without such a neighbour adds nothing.",
            make_edits=_along_selected(_above),
        ),
        Intervention(
            name="neighbour_below",
            title="neighbour below turned down",
            action="turning down the neighbours below",
            explanation="Instead of each selected intruder, the nearest vector below it that does match the "
            "base is multiplied by the strength; an intruder without such a neighbour adds nothing.",
            make_edits=_along_selected(_below),
        ),
        Intervention(
            name="tail",
            title="smallest directions cut, equal change",
            action="cutting the smallest directions of the update",
            explanation="The smallest singular values of the updates are removed, up to the norm of the "
            "intruder edit (above strength 1 they are added once more).",
            make_edits=_tail,
            needs_update_vectors=True,
        ),
        Intervention(
            name="interpolation",
            title="everything moved to the base",
            action="moving everything towards the base",
            explanation="Everything that the fine-tune changed, including embeddings, heads, biases and "
            "norms, is moved towards the base.",
            make_edits=_interpolation,
            uses_selection=False,
            moves_everything=True,
        ),
    )
}
"""Every intervention by name: the intruder edit first, then its controls in the order that tables show."""
