"""The records that carry one matrix from a file header to its decomposition.

A plan is made of these before any weight is read. They are frozen and picklable, so that a worker
process receives a :class:`MatrixPair` and loads what it names. Importing this module loads no torch.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from intruscope.weights.views import TensorView

Scope = Literal["paper", "other"]
CoverageStatus = Literal["compared", "unchanged", "skipped"]


@dataclass(frozen=True, kw_only=True)
class LowRankUpdate:
    """W_tuned = W_base + left_OR @ right_RI, scaling included."""

    left_OR: torch.Tensor
    right_RI: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DenseUpdate:
    """The tuned matrix itself, in its stored dtype or wider."""

    tuned_OI: torch.Tensor


class StoredUpdate(ABC):
    """What a fine-tune did to one matrix, decoded on demand."""

    @abstractmethod
    def load(self, base_OI: torch.Tensor) -> LowRankUpdate | DenseUpdate:
        """Read the update. ``base_OI`` is the loaded base in float32 or wider (DoRA needs it)."""


@dataclass(frozen=True, kw_only=True)
class MatrixPair:
    """One base matrix and what became of it.

    Attributes:
        name: Unique, as people name modules: ``model.layers.0.self_attn.q_proj``; parts of a fused
            tensor carry a suffix: ``h.0.attn.c_attn[q]``, ``experts.gate_up_proj[3][gate]``.
        kind: ``q k v o gate up down embedding head router conv other`` and the like, lower case.
        layer: Index of the block, None outside the blocks.
        scope: ``paper`` for linear layers of the blocks; ``other`` for embeddings, head, router,
            convolutions.
        estimated_bytes: Peak memory that loading both sides takes, from the headers.
    """

    name: str
    kind: str
    layer: int | None
    scope: Scope
    base: TensorView
    update: StoredUpdate
    estimated_bytes: int

    def load_float64(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Base and tuned matrix, (out, in) each, dense in float64."""
        base_OI = self.base.load().double()
        update = self.update.load(base_OI)
        if isinstance(update, DenseUpdate):
            return base_OI, update.tuned_OI.double()
        return base_OI, base_OI + update.left_OR.double() @ update.right_RI.double()


@dataclass(frozen=True, kw_only=True)
class CoverageEntry:
    """One line of the coverage ledger: what was done with one stored tensor, and why.

    Attributes:
        tensor: Name as stored.
        origin: Which input holds it.
        status: ``compared``, ``unchanged`` or ``skipped``.
        reason: One clause; never empty for ``skipped``.
        matrices: Names of the pairs it went into.
        gap: Skipped, and weights that should have been compared: the scan is incomplete (exit code 5).
        head: Skipped, as a head that only the tuned model has (``new``) or only the base (``dropped``), and
            the files say why.
    """

    tensor: str
    origin: Literal["base", "tuned", "adapter"]
    status: CoverageStatus
    reason: str
    matrices: tuple[str, ...] = ()
    gap: bool = False
    head: Literal["new", "dropped"] | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something the reader must know. ``severity`` orders them; ``code`` is stable for machines."""

    code: str
    severity: Literal["info", "warning", "error"]
    message: str
    matrix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The plan of a scan: which matrices are compared, and the ledger of everything else.

    Attributes:
        base, tuned: How the user named the models, resolved (path, revision).
        inputs: One record per input file: path, bytes, and what identifies it (for the plan's hash).
        complete: False when something that should have been compared could not be (exit code 5).
        in_memory: Either side is held by this process, so that nothing can be resumed or sent to workers.
    """

    base: str
    tuned: str
    pairs: tuple[MatrixPair, ...]
    coverage: tuple[CoverageEntry, ...]
    findings: tuple[Finding, ...]
    inputs: tuple[dict[str, object], ...]
    complete: bool
    in_memory: bool = False
