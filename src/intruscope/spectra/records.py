"""What a scan reports, as frozen records; :meth:`ScanReport.save` writes them as the public JSON schema.

A numerical outcome (borderline, degenerate, unfinished) is data here, not an exception. No field is
ever NaN or infinite: a value that does not exist is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from intruscope.options import MAX_SEED, check_options, documented, option
from intruscope.records.plain import BASE64, plain
from intruscope.records.report import Report
from intruscope.spectra.totals import ScanTotals, total
from intruscope.spectra.vectors import COLUMNS, vector_rows
from intruscope.weights.matrices import (  # noqa: TC001 - decoding reads the hints when it runs
    CoverageEntry,
    Finding,
    Scope,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

Verdict = Literal["intruder", "aligned", "borderline", "degenerate"]
Certificate = Literal["proved", "probabilistic", "dense"]
Side = Literal["left", "right"]
Status = Literal["done", "unfinished", "refused", "failed"]

SCHEMA = "intruscope.scan/1"
EPSILON_GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
K_GRID = (1, 2, 5, 10, 20, 50, 100)


@documented
@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """Everything that can change a verdict; part of the plan's hash.

    Raises:
        UsageError: a number is out of range.
    """

    k: int | Literal["all"] = option(
        10,
        help="Number of leading singular vectors of each matrix to examine.",
        minimum=1,
        maximum=10**9,
    )
    epsilon: float = option(
        0.5,
        help="Alignment threshold: a vector whose best match in the base is below it is an intruder.",
        above=0,
        maximum=1,
    )
    side: Literal["left", "right", "both"] = option(
        "left", help="Singular vectors to compare: left (output space), right (input space) or both."
    )
    null_trials: int = option(
        0,
        flag="null",
        help="Estimate the number of intruders expected by chance from N random rotations of each update.",
        minimum=0,
        maximum=10**6,
    )
    chance_trials: int = 4
    maps: int = option(
        0,
        help="Also compute similarity maps of the top N vectors of the base and the tuned model.",
        minimum=0,
        maximum=10**9,
        needs=("--json", "--html", "--plots"),
    )
    exact_effective_rank: bool = option(
        False, help="Compute the effective rank of large dense updates exactly, from all singular values."
    )
    prove: bool = option(
        False, help="Use dense float64 decompositions throughout: slower, and every verdict is exact."
    )
    seed: int = option(0, help="Random seed.", minimum=0, maximum=MAX_SEED, panel="How it runs")
    threads: int = option(1, help="Threads per worker process.", minimum=1, maximum=1024, panel="How it runs")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated figure, the interval that it lies in, and the method."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Match:
    """The base vector that a tuned vector matches, where one holds more than half of its squared length.

    Attributes:
        base_index: Index of the base vector, from 0 for the largest singular value.
        base_singular_value: Its singular value.
        relative_change: Tuned singular value over that, minus 1.
    """

    base_index: int
    base_singular_value: float
    relative_change: float


@dataclass(frozen=True, kw_only=True)
class GridCount:
    """Intruders among the top k at one threshold; ``num_undecided`` are borderline or degenerate there."""

    epsilon: float
    k: int
    num_intruders: int
    num_undecided: int


ChanceMethod = Literal["rotated", "spectra", "modelled-spectra"]


@dataclass(frozen=True, kw_only=True)
class NullCount:
    """Number of intruders when the update keeps its singular values and its directions are random.

    Attributes:
        trials: Number of random draws.
        mean: Mean count.
        low, high: 2.5% and 97.5% quantiles over the draws.
        counts: The count of each draw.
        method: ``rotated``: the update itself was rotated and every tuned vector analysed like the real ones.
            ``spectra``: sampled from the singular values of base and update alone, which gives the same law
            (:mod:`intruscope.linalg.chance`). ``modelled-spectra``: the same, where only the leading values
            and the norm are known and the others follow a power law.
    """

    trials: int
    mean: float
    low: float
    high: float
    counts: tuple[int, ...]
    method: ChanceMethod = "rotated"


@dataclass(frozen=True, kw_only=True)
class SimilarityMap:
    """|U0ᵀU| of the leading vectors in steps of 1/255: rows base, columns tuned, row by row."""

    num_base: int
    num_tuned: int
    levels: tuple[int, ...] = field(metadata=BASE64)


@dataclass(frozen=True, kw_only=True)
class SideReport:
    """One side of one matrix; tuples have one entry per tuned vector, by descending singular value.

    Attributes:
        side: ``left`` (output space) or ``right`` (input space).
        alignment_lower, alignment_upper: Bounds on the alignment, in [0, 1].
        verdicts: ``intruder``, ``aligned``, ``borderline`` or ``degenerate``; see docs/certificates.md.
        certificates: How each verdict is known.
        alignment_certificates: How each alignment is known, given the tuned vector.
        outside_column_space: Share of the squared length outside the base's column space; None where that is
            the whole space.
        matches: The base vector that each one matches, if any.
        num_intruders: Number of intruders among the verdicts.
        grid: Counts at other thresholds and other k.
        tuned_energy_fraction: Share of ‖W_tuned‖_F² in the intruders; None for a matrix of zeros.
        update_energy_fraction: Share of ‖ΔW‖_F² in the intruders' directions.
        null: Intruders of the rotated update, if asked for.
        chance: Intruders by chance, sampled from spectra; None where that was switched off or is too dear.
        similarity: The similarity map, if asked for.
        alignment_failure_probability: Probability that any probabilistic bound is wrong; the completeness of
            the tuned vectors has its own, ``top_k_failure_probability`` of the matrix.
    """

    side: Side
    alignment_lower: tuple[float, ...]
    alignment_upper: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    certificates: tuple[Certificate, ...]
    alignment_certificates: tuple[Certificate, ...]
    outside_column_space: tuple[float, ...] | None
    matches: tuple[Match | None, ...]
    num_intruders: int
    grid: tuple[GridCount, ...]
    tuned_energy_fraction: float | None
    update_energy_fraction: float | None
    null: NullCount | None = None
    chance: NullCount | None = None
    similarity: SimilarityMap | None = None
    alignment_failure_probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """Size and shape of the update ΔW.

    Attributes:
        frobenius_norm, spectral_norm: ‖ΔW‖_F and ‖ΔW‖₂, in the units of the weights.
        relative_frobenius_norm, relative_spectral_norm: The same over the norm of the base; None for a base
            of zeros.
        stable_rank: ‖ΔW‖_F² / ‖ΔW‖₂²; None for no update.
        effective_rank: exp of the entropy of the normalised singular values; None for no update.
        rank_bound: No update of this form can have a higher rank.
        top_energy_fraction: Share of ‖ΔW‖_F² within the base's k leading singular directions on both sides,
            ‖U_kᵀ ΔW V_k‖_F² / ‖ΔW‖_F² (OPLoRA's ρ_k), with the k of the scan. None for no update, a base of
            zeros, or all vectors.
        top_energy_chance: What it is on average in random directions: k² / (out · in).
    """

    frobenius_norm: float
    spectral_norm: float
    relative_frobenius_norm: float | None
    relative_spectral_norm: float | None
    stable_rank: float | None
    effective_rank: Estimate | None
    rank_bound: int
    top_energy_fraction: float | None = None
    top_energy_chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class MatrixReport:
    """Everything that a scan found about one matrix.

    Attributes:
        name: Name of the module; parts of fused tensors carry a suffix.
        shape: (out, in).
        kind: What the matrix does in its block: ``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` ...
        layer: Index of the block; None outside the blocks.
        scope: ``paper`` for linear layers of the blocks, which the totals count; else ``other``.
        status: ``done``, ``unfinished`` (deadline), ``refused`` (a finding says why) or ``failed``.
        singular_values: The leading ones of the tuned matrix, descending.
        residual_ratio: Largest residual of these, in units of rounding.
        top_k_failure_probability: Probability that a larger singular value was missed.
        sides: One report for each side that was asked for; empty without a result.
        update: Size and shape of the update.
        base_frobenius_norm, base_spectral_norm: ‖W_base‖_F and ‖W_base‖₂.
        findings: What the reader must know about this matrix.
        seconds: Time that it took.
    """

    name: str
    shape: tuple[int, int]
    kind: str
    layer: int | None
    scope: Scope
    status: Status
    singular_values: tuple[float, ...]
    residual_ratio: float | None
    top_k_failure_probability: float | None
    sides: tuple[SideReport, ...]
    update: UpdateReport | None
    base_frobenius_norm: float | None
    base_spectral_norm: float | None
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GateOutcome:
    """One condition that a scan was checked against; see :mod:`intruscope.spectra.gates`.

    Attributes:
        gate: The condition, as ``intruders>0``.
        value: Value of the metric; None where the scan does not have it.
        tripped: The condition is met, so the scan fails.
    """

    gate: str
    value: float | None
    tripped: bool


@dataclass(frozen=True, kw_only=True)
class ScanReport(Report):
    """A whole scan.

    It can be saved and loaded (:meth:`save`, :meth:`load`), turned into a table with one row per tuned
    vector (:meth:`to_pandas`, :meth:`to_arrow`), and shown in a notebook.

    Attributes:
        base, tuned: The models, as they were named.
        settings: What was computed.
        matrices: One report per matrix, in the order of the model.
        coverage: What was done with each stored tensor.
        findings: What the reader must know about the model as a whole.
        complete: False when something that should have been compared could not be.
        environment: Versions that a figure depends on.
        gates: Outcome of the conditions that the scan was checked against, if any.
    """

    schema = SCHEMA
    columns = COLUMNS

    base: str
    tuned: str
    settings: ScanSettings
    matrices: tuple[MatrixReport, ...]
    coverage: tuple[CoverageEntry, ...]
    findings: tuple[Finding, ...]
    complete: bool
    environment: dict[str, Any] = field(default_factory=dict)
    gates: tuple[GateOutcome, ...] = ()

    @cached_property
    def measured(self) -> tuple[MatrixReport, ...]:
        """Matrices of the ``paper`` scope that have a result."""
        return tuple(matrix for matrix in self.matrices if matrix.scope == "paper" and matrix.sides)

    @cached_property
    def totals(self) -> ScanTotals:
        """Sums over the ``paper`` scope: the linear layers of the blocks."""
        return total(matrix for matrix in self.matrices if matrix.scope == "paper")

    @cached_property
    def other_totals(self) -> ScanTotals:
        """Sums over everything else: embeddings, head, router, convolutions."""
        return total(matrix for matrix in self.matrices if matrix.scope == "other")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per matrix, side and tuned vector; matrices without a result have none."""
        return vector_rows(self.matrices)

    def notebook(self) -> Sequence[str]:
        """The headline beside chance, the size of the update, a map of layers and kinds, the top matrices."""
        from intruscope.spectra.notebook import scan_pieces

        return scan_pieces(self)

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        for given, matrix in zip(laid_out["matrices"], self.matrices, strict=True):
            side = given["sides"][0] if given["sides"] else None
            given |= {name: [] if side is None else side[name] for name in _FIRST_SIDE}
            given["num_intruders"] = matrix.sides[0].num_intruders if matrix.sides else 0
        first = ("base", "tuned", "complete", "settings")
        return {
            **{name: laid_out.pop(name) for name in first},
            "totals": {**plain(self.totals), "other": plain(self.other_totals)},
            **laid_out,
        }

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        derived = {*_FIRST_SIDE, "num_intruders"}
        matrices = [
            {name: item for name, item in matrix.items() if name not in derived}
            for matrix in data["matrices"]
        ]
        return {**{name: item for name, item in data.items() if name != "totals"}, "matrices": matrices}


_FIRST_SIDE = ("alignment_lower", "alignment_upper", "verdicts", "certificates")
"""What a matrix of the JSON object repeats of its first side, for readers who do not care about sides."""
