"""Where a fine-tune forgot and where it learned: the record of an attribution along the path of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from intruscope.forgetting.intervals import Interval  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.records import notebook
from intruscope.records.report import Report
from intruscope.weights.matrices import Finding  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.where/1"

SpanName = Literal["intruders", "other top vectors", "rest of the matrices", "other tensors"]


@dataclass(frozen=True, kw_only=True)
class PathTotal:
    """What all parts add up to, beside what was measured at both ends of the path.

    Attributes:
        measured: Tuned loss minus base loss for forgetting; base loss minus tuned loss for the gain.
        attributed: Sum of all parts.
        unit: ``nats/token`` or ``nats/example``.
        num_points: Points of the quadrature between base and tuned.
        num_groups: Groups of sequences or examples that the bootstrap resamples.
        num_sequences: Sequences or examples.
    """

    measured: float
    attributed: float
    unit: str
    num_points: int
    num_groups: int
    num_sequences: int

    @property
    def error(self) -> float | None:
        """Attributed minus measured, as a fraction of measured; None where nothing was measured."""
        return (self.attributed - self.measured) / self.measured if self.measured else None


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one part of the update accounts for. Shares of the gain are None without a task.

    Attributes:
        name: The part.
        norm_share: Its share of the squared Frobenius norm of everything that the fine-tune changed.
        forgetting_share: Its share of the attributed forgetting: negative where the part lowers the loss on
            the text, None where the attributed forgetting is zero.
        forgetting_interval: The share with its bootstrap interval.
        gain_share: Its share of the attributed gain on the task.
        gain_interval: The share with its bootstrap interval.
        ratio: Share of forgetting over share of gain, with its interval; None where the interval of the share
            of gain contains zero.
    """

    name: str
    norm_share: float
    forgetting_share: float | None
    forgetting_interval: Interval | None = None
    gain_share: float | None = None
    gain_interval: Interval | None = None
    ratio: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class SpanShare(Share):
    """One of four parts that every update splits into; their shares add up to 1.

    The first two are projections of the updates on spans of top left singular vectors of the tuned matrices.
    The third is what is left of these updates, and the last is everything that is not a surveyed matrix.
    """

    name: SpanName


@dataclass(frozen=True, kw_only=True)
class DirectionShare:
    """One singular direction of an update: ``u uᵀ ΔW``.

    Attributes:
        norm_share, forgetting_share, gain_share: As for :class:`Share`, of the whole model.
    """

    norm_share: float
    forgetting_share: float | None
    gain_share: float | None


@dataclass(frozen=True, kw_only=True)
class VectorShare(DirectionShare):
    """The part of an update along one top left singular vector y of the tuned matrix: ``y yᵀ ΔW``.

    Attributes:
        verdict: Verdict of the vector in a scan.
    """

    verdict: str


@dataclass(frozen=True, kw_only=True)
class MatrixShare(Share):
    """One matrix of the blocks.

    Attributes:
        kind: ``q``, ``k``, ``up`` and the like.
        layer: Index of the block; None outside the blocks.
        directions: The leading singular directions of the update, by falling singular value.
        vectors: The top vectors of the tuned matrix, by falling singular value.
    """

    kind: str
    layer: int | None
    directions: tuple[DirectionShare, ...]
    vectors: tuple[VectorShare, ...]


@dataclass(frozen=True, kw_only=True)
class WhereReport(Report):
    """Where in the model a fine-tune forgot, and where it learned its task.

    Its table has one row per span, matrix, singular direction of an update, top vector and other tensor.

    Attributes:
        task: Name of the task; None without one.
        protocol: How losses on the text were computed.
        k, epsilon: What counts as an intruder; see :class:`intruscope.spectra.records.ScanSettings`.
        total: Forgetting.
        gain_total: Gain on the task; None without one.
        spans: Intruders, other top vectors, rest of the matrices, other tensors.
        matrices: The matrices of the blocks, in the order of the base.
        tensors: Everything else that the fine-tune changed: biases, norms, embeddings, heads.
        findings: What limits these figures.
    """

    schema = SCHEMA
    columns: ClassVar[dict[str, str]] = {
        "part": "string",
        "name": "string",
        "index": "int64",
        "kind": "string",
        "layer": "int64",
        "verdict": "string",
        "norm_share": "float64",
        "forgetting_share": "float64",
        "forgetting_low": "float64",
        "forgetting_high": "float64",
        "gain_share": "float64",
        "gain_low": "float64",
        "gain_high": "float64",
        "ratio": "float64",
        "ratio_low": "float64",
        "ratio_high": "float64",
    }

    task: str | None
    protocol: str
    k: int
    epsilon: float
    total: PathTotal
    gain_total: PathTotal | None
    spans: tuple[SpanShare, ...]
    matrices: tuple[MatrixShare, ...]
    tensors: tuple[Share, ...]
    findings: tuple[Finding, ...] = ()

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per part: spans, matrices with their directions and vectors, other tensors."""
        for span in self.spans:
            yield "span", span.name, None, None, None, None, *_figures(span)
        for matrix in self.matrices:
            place = (matrix.kind, matrix.layer)
            yield "matrix", matrix.name, None, *place, None, *_figures(matrix)
            for index, direction in enumerate(matrix.directions):
                yield "direction", matrix.name, index, *place, None, *_point(direction)
            for index, vector in enumerate(matrix.vectors):
                yield "vector", matrix.name, index, *place, vector.verdict, *_point(vector)
        for tensor in self.tensors:
            yield "tensor", tensor.name, None, None, None, None, *_figures(tensor)

    def notebook(self) -> Sequence[str]:
        """The spans, then the matrices that account for most of the forgetting."""
        largest = sorted(self.matrices, key=lambda each: -(each.forgetting_share or 0.0))[:12]
        columns = ("part", "squared norm", "forgetting", "gain", "ratio")
        return [
            notebook.headline(
                f"{self.total.attributed:+.3f}",
                f"{self.total.unit} of forgetting attributed, {self.total.measured:+.3f} measured",
            ),
            notebook.table("Spans", columns, [_cells(each) for each in self.spans]),
            notebook.table("Matrices", columns, [_cells(each) for each in largest]),
        ]


def _bounds(found: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if found is None else (found.low, found.high)


def _figures(share: Share) -> tuple[Cell, ...]:
    return (
        share.norm_share,
        share.forgetting_share,
        *_bounds(share.forgetting_interval),
        share.gain_share,
        *_bounds(share.gain_interval),
        None if share.ratio is None else share.ratio.estimate,
        *_bounds(share.ratio),
    )


def _point(share: DirectionShare) -> tuple[Cell, ...]:
    nothing = (None, None)
    return share.norm_share, share.forgetting_share, *nothing, share.gain_share, *nothing, None, *nothing


def _cells(share: Share) -> tuple[str, ...]:
    shares = (share.norm_share, share.forgetting_share, share.gain_share)
    ratio = "" if share.ratio is None else f"{share.ratio.estimate:.2f}"
    return (share.name, *("" if each is None else f"{each:.1%}" for each in shares), ratio)
