"""What a scan reports. Frozen records; ``to_json`` of the report package writes them as the public schema.

A numerical outcome (borderline, degenerate, unfinished) is data here, not an exception. No field is
ever NaN or infinite: a value that does not exist is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from intruscope.options import MAX_SEED, check_options, documented, option

if TYPE_CHECKING:
    from intruscope.weights.matrices import CoverageEntry, Finding, Scope

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
    """A figure with the interval it is known to lie in, and how that is known."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Match:
    """The base vector that a tuned vector matches best, when it could be named."""

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


@dataclass(frozen=True, kw_only=True)
class NullCount:
    """Intruders that the same update spectrum makes in random directions, over ``trials`` draws."""

    trials: int
    mean: float
    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SimilarityMap:
    """|U0ᵀU| of the top vectors: rows base, columns tuned, both by falling singular value, in 1/255 steps."""

    num_base: int
    num_tuned: int
    levels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SideReport:
    """One side of one matrix; all tuples have one entry per tuned vector, by falling singular value.

    ``alignment_failure_probability`` is that of everything probabilistic among the bounds together (the
    completeness of the tuned top has its own, ``top_k_failure_probability`` of the matrix).
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
    similarity: SimilarityMap | None = None
    alignment_failure_probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """Size and shape of ΔW."""

    frobenius_norm: float
    spectral_norm: float
    relative_frobenius_norm: float | None
    relative_spectral_norm: float | None
    stable_rank: float | None
    effective_rank: Estimate | None
    rank_bound: int


@dataclass(frozen=True, kw_only=True)
class MatrixReport:
    """Everything said of one matrix.

    ``status``: ``done``, ``unfinished`` (deadline), ``refused`` (a finding forbids it) or ``failed``.
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
class ScanReport:
    """The whole scan."""

    base: str
    tuned: str
    settings: ScanSettings
    matrices: tuple[MatrixReport, ...]
    coverage: tuple[CoverageEntry, ...]
    findings: tuple[Finding, ...]
    complete: bool
    environment: dict[str, Any] = field(default_factory=dict)
