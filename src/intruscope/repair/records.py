"""Records of a repair, as in the plan, the manifest beside the weights, and the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from intruscope.repair.interventions import edit_norm
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.repair.edits import MatrixEdit
    from intruscope.repair.survey import Survey, SurveyedMatrix
    from intruscope.spectra.records import Certificate, Verdict
    from intruscope.weights.matrices import Finding
    from intruscope.writing.lora import LoraAdapter

SCHEMA = "intruscope.repair/1"
Rank = Literal["exact", "same"] | int


@dataclass(frozen=True, kw_only=True)
class EditedVector:
    """One singular vector whose singular value is scaled.

    Attributes:
        index: By falling singular value of the tuned matrix, from 0.
        verdict: Its verdict; the edit does not change its direction, and so not its alignment.
        certificate: How the verdict is known.
        before: Its singular value before the edit.
        after: Its singular value after it.
        still_counted: Whether it remains an intruder among the top k, so that a scan finds it again.
    """

    index: int
    verdict: Verdict
    certificate: Certificate
    before: float
    after: float
    still_counted: bool


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Squared Frobenius norms before and after an edit, and their parts in the intruders' directions.

    The directions are those of all intruders before the edit, edited or not; an edit does not turn them.
    """

    before: float
    after: float
    intruders_before: float
    intruders_after: float


@dataclass(frozen=True, kw_only=True)
class EditedMatrix:
    """What happens to one matrix.

    Attributes:
        name: Name of the matrix.
        shape: (out, in).
        update_scale: Factor on the whole update.
        num_directions: Number of directions that are changed one by one.
        change_norm: ‖W' − W‖_F.
        update_norm: ‖ΔW‖_F before the edit.
        update_norm_after: ‖ΔW‖_F after it; None for a control along directions whose share in a full update
            is not known.
        vectors: The edited vectors of an intruder edit; empty for controls.
        tuned: ‖W‖_F² and its part in the intruders' directions; None for controls.
        update: ‖ΔW‖_F² and its part in these directions; None for controls.
    """

    name: str
    shape: tuple[int, int]
    update_scale: float
    num_directions: int
    change_norm: float
    update_norm: float
    update_norm_after: float | None
    vectors: tuple[EditedVector, ...] = ()
    tuned: Energy | None = None
    update: Energy | None = None


@dataclass(frozen=True, kw_only=True)
class ModuleRank:
    """How one module of an adapter is stored.

    Attributes:
        name: Name of the module.
        before: Its rank in the original; 0 if the original does not store LoRA factors.
        exact: The rank at which the edited update is stored without loss.
        after: The rank at which it is stored.
        touched: Whether its tensors are rewritten; otherwise they keep their bytes.
        frobenius_error: Frobenius norm of what the rank ``after`` loses; 0 if it is exact.
        spectral_error: The same in the spectral norm.
        change_norm: ‖W' − W‖_F of the edit, to compare the error with.
    """

    name: str
    before: int
    exact: int
    after: int
    touched: bool
    frobenius_error: float
    spectral_error: float
    change_norm: float


def edited_matrix(edit: MatrixEdit, matrix: SurveyedMatrix, indices: tuple[int, ...] | None) -> EditedMatrix:
    """Describe an edit.

    Args:
        edit: The edit of the matrix.
        matrix: The surveyed matrix.
        indices: The vectors that an intruder edit scales; None for a control.
    """
    described = EditedMatrix(
        name=matrix.name,
        shape=matrix.report.shape,
        update_scale=edit.update_scale,
        num_directions=edit.num_directions,
        change_norm=edit_norm(edit, matrix),
        update_norm=matrix.update_norm,
        update_norm_after=_norm_after(edit, matrix),
    )
    if indices is None:
        return described
    values = matrix.values_K.tolist()
    after = dict(zip(indices, (matrix.values_K[list(indices)] + edit.change_K).tolist(), strict=True))
    # In the top k whatever lies below it: at least as large as the smallest kept value that stays.
    floor = min((value for i, value in enumerate(values) if i not in after), default=0.0)
    side = matrix.report.sides[0]
    vectors = tuple(
        EditedVector(
            index=i,
            verdict=side.verdicts[i],
            certificate=side.certificates[i],
            before=values[i],
            after=after[i],
            still_counted=side.verdicts[i] == "intruder" and after[i] > 0.0 and after[i] >= floor,
        )
        for i in indices
    )
    tuned, update = _energies(matrix, after)
    norm_after = math.sqrt(update.after)
    return replace(described, vectors=vectors, tuned=tuned, update=update, update_norm_after=norm_after)


def _norm_after(edit: MatrixEdit, matrix: SurveyedMatrix) -> float | None:
    """‖t ΔW + Σ c u vᵀ‖_F; None where uᵀ ΔW v is not known. The directions of an edit are orthonormal."""
    scaled = edit.update_scale * matrix.update_norm
    if not edit.num_directions:
        return abs(scaled)
    if matrix.update_svd is None:
        return None
    left_OR, values_R, right_IR = matrix.update_svd
    along_K = ((edit.left_OK.T @ left_OR) * values_R * (edit.right_IK.T @ right_IR)).sum(dim=1)
    crossed = edit.update_scale * float((edit.change_K * along_K).sum())
    return math.sqrt(max(0.0, scaled**2 + 2.0 * crossed + float(edit.change_K.square().sum())))


def _energies(matrix: SurveyedMatrix, after: dict[int, float]) -> tuple[Energy, Energy]:
    """Of W and of ΔW, from the kept vectors alone.

    The new matrix has the same singular vectors, so ‖W'‖² = ‖W‖² + Σ (σ'² − σ²); and the new update is ΔW
    plus (σ' − σ) u vᵀ, so its norm and its core follow from uᵀ ΔW v.
    """
    import torch

    values_K = matrix.values_K
    changed_K = values_K.clone()
    for index, value in after.items():
        changed_K[index] = value
    change_K = changed_K - values_K
    inside = sorted({*matrix.intruders, *after})
    core_KK = matrix.core_KK
    core_after_KK = core_KK + torch.diag(change_K)
    update_change = float((2.0 * change_K * core_KK.diagonal() + change_K.square()).sum())
    tuned_change = float((changed_K.square() - values_K.square()).sum())
    tuned = Energy(
        before=matrix.tuned_norm**2,
        after=max(0.0, matrix.tuned_norm**2 + tuned_change),
        intruders_before=float(values_K[inside].square().sum()),
        intruders_after=float(changed_K[inside].square().sum()),
    )
    update = Energy(
        before=matrix.update_norm**2,
        after=max(0.0, matrix.update_norm**2 + update_change),
        intruders_before=float(core_KK[inside][:, inside].square().sum()),
        intruders_after=float(core_after_KK[inside][:, inside].square().sum()),
    )
    return tuned, update


@dataclass(frozen=True, kw_only=True)
class RepairTotals:
    """An edit summed over the matrices that it changes.

    Attributes:
        num_matrices: Number of edited matrices.
        num_vectors: Number of edited vectors.
        num_still_counted: How many of these a scan will still count, at least.
        change_norm: ‖W' − W‖_F over all matrices.
        update_norm: ‖ΔW‖_F over the edited matrices before the edit.
        update_norm_after: The same after it: the distance from the base. None where it is not known.
        tuned_before: Share of Σ‖W‖_F² in the intruders' directions; None for controls.
        tuned_after: After the edit.
        update_before: Share of Σ‖ΔW‖_F² inside them.
        update_after: After the edit.
    """

    num_matrices: int
    num_vectors: int
    num_still_counted: int
    change_norm: float
    update_norm: float
    update_norm_after: float | None
    tuned_before: float | None
    tuned_after: float | None
    update_before: float | None
    update_after: float | None


def totals(matrices: Sequence[EditedMatrix]) -> RepairTotals:
    """Sum up; shares are of sums, so that large matrices count for more."""
    vectors = [vector for matrix in matrices for vector in matrix.vectors]
    tuned = [matrix.tuned for matrix in matrices if matrix.tuned is not None]
    update = [matrix.update for matrix in matrices if matrix.update is not None]
    after = [m.update_norm_after for m in matrices]
    known = [norm for norm in after if norm is not None]
    return RepairTotals(
        num_matrices=len(matrices),
        num_vectors=len(vectors),
        num_still_counted=sum(vector.still_counted for vector in vectors),
        change_norm=math.hypot(*(matrix.change_norm for matrix in matrices)),
        update_norm=math.hypot(*(matrix.update_norm for matrix in matrices)),
        update_norm_after=math.hypot(*known) if len(known) == len(after) else None,
        tuned_before=_share(sum(e.intruders_before for e in tuned), sum(e.before for e in tuned)),
        tuned_after=_share(sum(e.intruders_after for e in tuned), sum(e.after for e in tuned)),
        update_before=_share(sum(e.intruders_before for e in update), sum(e.before for e in update)),
        update_after=_share(sum(e.intruders_after for e in update), sum(e.after for e in update)),
    )


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0.0 else None


@dataclass(frozen=True, kw_only=True)
class FitOrigin:
    """Where edits that were fitted to data come from.

    Attributes:
        title: Of the fix, for people.
        explanation: What it does, in a sentence or two.
        weight: Of the general loss beside the task's.
        num_trained: How many numbers were trained.
        num_steps: How many steps were taken.
        stopped_at: The step whose numbers were kept.
        seconds: How long the fit took.
        task: Name of the examples, or the name of what stands for them.
        text: Name of the text.
        task_sha256: Hash of what was fitted and what decided when to stop.
        text_sha256: Likewise.
    """

    title: str
    explanation: str
    weight: float
    num_trained: int
    num_steps: int
    stopped_at: int
    seconds: float
    task: str
    text: str
    task_sha256: str
    text_sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairRecord:
    """What a repair will change; nothing is written yet.

    Attributes:
        survey: The survey it is based on.
        control: Name of the intervention.
        strength: λ; None for a fit.
        which: The selection of vectors.
        seed: Random seed.
        rank: The requested rank.
        compact: Whether ranks may differ by module (``rank_pattern``).
        writes: ``adapter`` or ``checkpoint``; a given adapter is then merged into the checkpoint.
        edits: Everything that changes; empty if there is nothing to repair.
        matrices: A description of each edited matrix.
        modules: How each module of the adapter is stored; empty for a checkpoint or a copy.
        lora: The adapter to write, if the original cannot hold the edits in its own form; else None.
        num_left: Number of undecided vectors (borderline, degenerate), which are left alone.
        findings: Findings.
        fit: What was fitted; None for an intervention.
    """

    survey: Survey
    control: str
    strength: float | None
    which: str
    seed: int
    rank: Rank
    compact: bool
    writes: Literal["adapter", "checkpoint"]
    edits: tuple[MatrixEdit, ...]
    matrices: tuple[EditedMatrix, ...]
    modules: tuple[ModuleRank, ...]
    lora: LoraAdapter | None
    num_left: int
    findings: tuple[Finding, ...]
    fit: FitOrigin | None = None

    @property
    def is_copy(self) -> bool:
        """Whether nothing is edited, so that the output is the tuned model byte for byte."""
        return not self.edits and not self.merges

    @property
    def merges(self) -> bool:
        """Whether an adapter is merged into a full checkpoint."""
        return self.writes == "checkpoint" and not isinstance(self.survey.tuned, ModelSource)

    @property
    def totals(self) -> RepairTotals:
        """All edited matrices together."""
        return totals(self.matrices)

    @property
    def changed(self) -> Mapping[str, MatrixEdit]:
        """The edits by matrix or tensor name."""
        return {edit.name: edit for edit in self.edits}

    @property
    def stored_rank(self) -> int | None:
        """The rank of the adapter if all its modules have the same, else None."""
        ranks = {module.after for module in self.modules}
        return ranks.pop() if len(ranks) == 1 else None
