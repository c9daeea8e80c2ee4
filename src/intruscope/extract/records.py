"""What an extraction says of itself: in the plan, in the manifest beside the weights, and to the reader.

A value that does not exist is None; no field is ever NaN or infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.extract.allocate import Allocation
    from intruscope.spectra.records import Certificate, Estimate
    from intruscope.weights.matrices import Finding, Pairing
    from intruscope.weights.source import ModelSource
    from intruscope.writing.modules import TargetModule
    from intruscope.writing.naming import AdapterNames
    from intruscope.writing.rest import Rest, Saved

SCHEMA = "intruscope.extract/1"

Dtype = Literal["float32", "bfloat16", "float16"]
ChoiceKind = Literal["rank", "energy", "error", "parameters"]


@dataclass(frozen=True, kw_only=True)
class RankChoice:
    """How ranks are chosen.

    Attributes:
        kind: ``rank``: one for all. ``energy``: the smallest of each matrix that keeps this share of ‖ΔW‖_F².
            ``error``: the smallest whose relative Frobenius error is at most this. ``parameters``: so many
            numbers for all matrices together, where they lower the error most.
        value: Of it.
    """

    kind: ChoiceKind
    value: float

    @property
    def left_fraction(self) -> float | None:
        """Share of ‖ΔW‖_F² that each matrix may lose; None where something else decides."""
        if self.kind == "energy":
            return 1.0 - self.value
        return self.value**2 if self.kind == "error" else None


@dataclass(frozen=True, kw_only=True)
class KeptIntruders:
    """What became of a matrix's intruders when its update was cut to the rank.

    Attributes:
        name: Of the matrix, as a scan names it (a part of a fused one has its own).
        tuned: Intruders of the tuned model, as a scan counts them.
        extracted: Intruders of the base with the adapter.
        kept: Of the tuned ones, those whose direction lies in the span of the extracted ones with more than
            half of its squared length.
        undecided: Vectors of either whose verdict is open (borderline, degenerate).
    """

    name: str
    tuned: int
    extracted: int
    kept: int
    undecided: int


@dataclass(frozen=True, kw_only=True)
class ExtractedMatrix:
    """One module that gets factors.

    Attributes:
        name: Of the module, as the base stores it.
        module: As the adapter names it.
        shape: (out, in).
        rank: Of its factors, without padding; 0 where the budget reached none.
        rank_bound: No update of this kind can have a higher rank: the smaller side, or that of the factors
            it was read from.
        update_norm: ‖ΔW‖_F.
        relative_error: ‖ΔW − B A‖_F / ‖ΔW‖_F of the factors as they are written.
        optimal_error: The least that any matrix of this rank reaches.
        spectral_low, spectral_high: Between which values ‖ΔW − B A‖₂ lies; no matrix of this rank is below
            the low one.
        certificate: How it is known that no larger singular value was missed.
        failure_probability: Of that knowledge.
        energy: Share of ‖ΔW‖_F² that is kept.
        effective_rank: Of ΔW.
        rounding_fraction: Share of ‖ΔW‖_F² that storing the tuned weights in their dtype makes on average,
            at most one; None where the update was stored as factors.
        intruders: Per matrix of a scan in it; empty outside the paper's scope.
    """

    name: str
    module: str
    shape: tuple[int, int]
    rank: int
    rank_bound: int
    update_norm: float
    relative_error: float
    optimal_error: float
    spectral_low: float
    spectral_high: float
    certificate: Certificate
    failure_probability: float
    energy: float
    effective_rank: Estimate | None
    rounding_fraction: float | None
    intruders: tuple[KeptIntruders, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Numbers in its factors, without padding."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The error of all matrices together at one size.

    Attributes:
        rank: One for all; None where each has its own.
        num_parameters: Numbers in the factors.
        relative_error: √(Σ‖ΔW − B A‖_F² / Σ‖ΔW‖_F²), the least there is.
    """

    rank: int | None
    num_parameters: int
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class ExtractTotals:
    """All matrices together.

    Attributes:
        num_matrices: With factors.
        num_parameters: In them, without padding.
        stored_parameters: In the file's factors, zeros of the padding included.
        relative_error: √(Σ‖ΔW − B A‖_F² / Σ‖ΔW‖_F²).
        relative_error_with_rest: The same with everything else that changed and is not saved: the distance of
            the base with the adapter from the tuned model over that of the base.
        energy: Share of Σ‖ΔW‖_F² that is kept.
        tuned_intruders, extracted_intruders, kept_intruders, undecided: Sums over the scan's matrices.
    """

    num_matrices: int
    num_parameters: int
    stored_parameters: int
    relative_error: float
    relative_error_with_rest: float
    energy: float
    tuned_intruders: int
    extracted_intruders: int
    kept_intruders: int
    undecided: int


def totals(
    matrices: Sequence[ExtractedMatrix], rest: Sequence[Rest], *, padded_rank: int | None
) -> ExtractTotals:
    """Sum up.

    Args:
        matrices: All that changed and were chosen, also those of rank 0.
        rest: Everything else.
        padded_rank: To which all factors are filled up; None where each keeps its own.
    """
    change = sum(matrix.update_norm**2 for matrix in matrices)
    lost = sum((matrix.relative_error * matrix.update_norm) ** 2 for matrix in matrices)
    beside = sum(r.change_norm**2 for r in rest if r.change_norm is not None)
    beside_lost = sum(r.change_norm**2 for r in rest if r.change_norm is not None and r.status != "saved")
    used = [matrix for matrix in matrices if matrix.rank]
    intruders = [each for matrix in matrices for each in matrix.intruders]
    return ExtractTotals(
        num_matrices=len(used),
        num_parameters=sum(matrix.num_parameters for matrix in used),
        stored_parameters=sum((padded_rank or matrix.rank) * sum(matrix.shape) for matrix in used),
        relative_error=_root(lost, change),
        relative_error_with_rest=_root(lost + beside_lost, change + beside),
        energy=1.0 - min(1.0, lost / change) if change else 1.0,
        tuned_intruders=sum(each.tuned for each in intruders),
        extracted_intruders=sum(each.extracted for each in intruders),
        kept_intruders=sum(each.kept for each in intruders),
        undecided=sum(each.undecided for each in intruders),
    )


def _root(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractRecord:
    """What an extraction computed: an adapter that is not written yet.

    Attributes:
        base: Opened.
        tuned: Opened.
        pairing: Of both.
        choice: Of the ranks.
        which: Modules that were asked for.
        compact: Each module keeps its own rank (``rank_pattern``).
        dtype: Of the factors in the file.
        save_rest: Whatever else changed is saved where PEFT can.
        names: Of the model's modules.
        modules: Those with factors, in the order of the base.
        others: Names of all further modules that hold matrices, as the model calls them.
        factors: B (out, rank) and A (rank, in) of each, by its name, without padding.
        matrices: The same, described, and those that were chosen and changed and have rank 0.
        rest: Everything else that changed.
        saved: What of it goes into the adapter.
        curve: Error at one rank for all.
        best: Least error at the same sizes where each matrix has its own rank.
        allocation: How a number of parameters was spent; None where ranks were chosen otherwise.
        findings: What the reader must know.
    """

    base: ModelSource
    tuned: ModelSource | AdapterSource
    pairing: Pairing
    choice: RankChoice
    which: str
    compact: bool
    dtype: Dtype
    save_rest: bool
    names: AdapterNames
    modules: tuple[TargetModule, ...]
    others: tuple[str, ...]
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    matrices: tuple[ExtractedMatrix, ...]
    rest: tuple[Rest, ...]
    saved: Saved
    curve: tuple[CurvePoint, ...]
    best: tuple[CurvePoint, ...]
    allocation: Allocation | None
    findings: tuple[Finding, ...] = ()

    @property
    def is_empty(self) -> bool:
        """No chosen matrix changed: there is no adapter to write."""
        return not self.modules

    @property
    def stored_rank(self) -> int | None:
        """The one rank of all factors in the file; None where they differ, or where there are none."""
        ranks = {up.shape[1] for up, _ in self.factors.values()}
        if not ranks or (self.compact and len(ranks) > 1):
            return None
        return max(ranks)

    @property
    def totals(self) -> ExtractTotals:
        """All matrices together."""
        return totals(self.matrices, self.rest, padded_rank=self.stored_rank)
