"""Records of an extraction, as in the plan, the manifest beside the weights, and the terminal.

A value that does not exist is None; no field is ever NaN or infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        kind: ``rank``: one rank for all matrices. ``energy``: per matrix, the smallest rank that keeps this
            share of ‖ΔW‖_F². ``error``: per matrix, the smallest rank whose relative Frobenius error is at
            most this. ``parameters``: a budget for all matrices, spent where it lowers the error most.
        value: The rank, share, error or budget.
    """

    kind: ChoiceKind
    value: float

    @property
    def left_fraction(self) -> float | None:
        """Share of ‖ΔW‖_F² that each matrix may lose; None for ``rank`` and ``parameters``."""
        if self.kind == "energy":
            return 1.0 - self.value
        return self.value**2 if self.kind == "error" else None


@dataclass(frozen=True, kw_only=True)
class KeptIntruders:
    """What became of a matrix's intruders when its update was cut to the rank.

    Attributes:
        name: Name of the matrix in a scan (each part of a fused matrix has its own).
        tuned: Intruders of the tuned model, as a scan counts them.
        extracted: Intruders of the base with the adapter.
        kept: Intruders of the tuned model of whose direction more than half (squared length) lies in the span
            of the extracted ones.
        undecided: Vectors of either model whose verdict is borderline or degenerate.
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
        name: Name of the module in the base's files.
        module: Its name in the adapter.
        shape: (out, in).
        rank: Rank of its factors, without padding; 0 if the budget left it none.
        rank_bound: No update of this kind can have a higher rank: the smaller side, or that of the factors
            it was read from.
        update_norm: ‖ΔW‖_F.
        relative_error: ‖ΔW − B A‖_F / ‖ΔW‖_F of the factors as they are written.
        optimal_error: The smallest relative error possible at this rank.
        spectral_low, spectral_high: Bounds on ‖ΔW − B A‖₂; no matrix of this rank goes below the lower one.
        certificate: How it is known that no larger singular value was missed.
        failure_probability: Probability that one was.
        energy: Share of ‖ΔW‖_F² that is kept.
        effective_rank: Effective rank of ΔW.
        rounding_fraction: Expected share of ‖ΔW‖_F² that is rounding noise from storing the tuned weights, at
            most 1; None if the update was stored as factors.
        intruders: One entry per matrix of a scan; empty outside the paper's scope.
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
        """Parameters in its factors, without padding."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True, kw_only=True)
class ErrorPoint:
    """The error of all matrices together at one size.

    Attributes:
        rank: The rank of all matrices; None if each has its own.
        num_parameters: Parameters in the factors.
        relative_error: √(Σ‖ΔW − B A‖_F² / Σ‖ΔW‖_F²), the smallest possible.
    """

    rank: int | None
    num_parameters: int
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class ExtractTotals:
    """All matrices together.

    Attributes:
        num_matrices: Matrices with factors.
        num_parameters: Parameters in these factors, without padding.
        stored_parameters: The same as stored, with padding.
        relative_error: √(Σ‖ΔW − B A‖_F² / Σ‖ΔW‖_F²).
        relative_error_with_rest: The same including everything else that changed: the distance from the
            tuned model of the base with the adapter, over that of the base alone.
        energy: Share of Σ‖ΔW‖_F² that is kept.
        tuned_intruders, extracted_intruders, kept_intruders, undecided: Sums over all matrices of a scan.
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


def _root(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractRecord:
    """What an extraction computed: an adapter that is not written yet.

    Attributes:
        base: The opened base.
        tuned: The opened tuned model.
        pairing: Their matrices, paired.
        choice: How ranks are chosen.
        which: The selection of modules.
        compact: Each module keeps its own rank (``rank_pattern``).
        dtype: Dtype of the stored factors.
        save_rest: Whether to save everything else that changed, as far as PEFT can hold it.
        names: How the model names its modules.
        modules: The modules with factors, in the order of the base.
        others: Names (in the model) of all other modules that hold matrices.
        factors: B (out, rank) and A (rank, in) by module name, without padding.
        matrices: A description of each, including selected matrices that changed but got rank 0.
        rest: Everything else that changed.
        saved: The part of it that goes into the adapter.
        curve: Error at one rank for all matrices.
        best: Smallest error at the same sizes if each matrix has its own rank.
        allocation: How a budget of parameters was spent; None for other choices.
        findings: Findings.
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
    curve: tuple[ErrorPoint, ...]
    best: tuple[ErrorPoint, ...]
    allocation: Allocation | None
    findings: tuple[Finding, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether no selected matrix changed, so that there is no adapter to write."""
        return not self.modules

    @property
    def stored_rank(self) -> int | None:
        """The rank of all factors in the file; None if they differ, or there are none."""
        ranks = {up.shape[1] for up, _ in self.factors.values()}
        if not ranks or (self.compact and len(ranks) > 1):
            return None
        return max(ranks)

    @property
    def totals(self) -> ExtractTotals:
        """All matrices together."""
        change = sum(matrix.update_norm**2 for matrix in self.matrices)
        lost = sum((matrix.relative_error * matrix.update_norm) ** 2 for matrix in self.matrices)
        rest = [(r.change_norm**2, r.status == "saved") for r in self.rest if r.change_norm is not None]
        beside = sum(square for square, _ in rest)
        beside_lost = sum(square for square, is_saved in rest if not is_saved)
        used = [matrix for matrix in self.matrices if matrix.rank]
        intruders = [each for matrix in self.matrices for each in matrix.intruders]
        return ExtractTotals(
            num_matrices=len(used),
            num_parameters=sum(matrix.num_parameters for matrix in used),
            stored_parameters=sum((self.stored_rank or matrix.rank) * sum(matrix.shape) for matrix in used),
            relative_error=_root(lost, change),
            relative_error_with_rest=_root(lost + beside_lost, change + beside),
            energy=1.0 - min(1.0, lost / change) if change else 1.0,
            tuned_intruders=sum(each.tuned for each in intruders),
            extracted_intruders=sum(each.extracted for each in intruders),
            kept_intruders=sum(each.kept for each in intruders),
            undecided=sum(each.undecided for each in intruders),
        )
