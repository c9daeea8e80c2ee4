"""What a worker gets and gives for one matrix; apart from the work, so that a plan needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.compare.records import MergeModule, PairModule  # noqa: TC001 - decoding reads the hints
from intruscope.weights.matrices import Finding, MatrixPair, Scope  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from intruscope.compare.settings import CompareSettings


@dataclass(frozen=True, kw_only=True)
class MatrixTask:
    """One matrix, as it is sent to a worker.

    Attributes:
        name: Name of the matrix.
        kind, layer, scope, shape: See :class:`intruscope.weights.matrices.MatrixPair`.
        labels: Name of each fine-tune, for findings.
        pairs: The pair of each fine-tune; None where it leaves the matrix as it is.
        has_base: The base can be read.
        settings: What is computed.
    """

    name: str
    kind: str
    layer: int | None
    scope: Scope
    shape: tuple[int, int]
    labels: tuple[str, ...]
    pairs: tuple[MatrixPair | None, ...]
    has_base: bool
    settings: CompareSettings


@dataclass(frozen=True, kw_only=True)
class IndexedPair:
    """Two fine-tunes in one matrix, by their place in the order of all."""

    first: int
    second: int
    module: PairModule


@dataclass(frozen=True, kw_only=True)
class MatrixComparison:
    """Everything found about one matrix.

    Attributes:
        pairs: Every pair of fine-tunes that change it and can be read.
        merge: None where an update cannot be read.
        findings: NaN, and other reasons why something is missing.
    """

    pairs: tuple[IndexedPair, ...]
    merge: MergeModule | None
    findings: tuple[Finding, ...]
