"""Records of a verification. A value that does not exist is None; no field is ever NaN or infinite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence  # noqa: TC003 - decoding reads the hints when it runs
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from intruscope.records.report import Report
from intruscope.records.tables import Cell  # noqa: TC001
from intruscope.weights.matrices import Finding  # noqa: TC001

SCHEMA = "intruscope.verify/1"

Verdict = Literal["applied", "not applied", "partly", "open"]
ModuleStatus = Literal[
    "applied", "not applied", "wrong scale", "wrong sign", "transposed", "other change", "missing", "open"
]
OtherStatus = Literal["changed", "resized", "new", "dropped", "open"]

FAILED: frozenset[str] = frozenset(
    {"not applied", "wrong scale", "wrong sign", "transposed", "other change", "missing"}
)
"""Statuses of a module that make the command fail."""


@dataclass(frozen=True, kw_only=True)
class ModuleCheck:
    """One adapted matrix or vector: E is the update it should have got, D = merged − base what it got.

    Attributes:
        name: As a scan names the matrix; the stored name of a bias or norm.
        kind: Kind of the matrix (``q``, ``up`` ...); ``vector`` for biases and norms.
        layer: Index of the block; None outside the blocks.
        shape: (out, in); (size, 1) for a vector.
        dtype: Stored dtype in the merged model, as safetensors names it; None if it is not stored there.
        status: ``applied``: every entry agrees with E up to rounding. ``not applied``: equal to the base.
            ``wrong scale`` or ``wrong sign``: another multiple of E. ``transposed``: Eᵀ, or the whole matrix
            transposed. ``other change``: none of these. ``missing``: the merged model does not store it.
            ``open``: the stored numbers cannot tell.
        strength: ⟨D, E⟩ / ‖E‖² over the entries that rounding cannot hide (over all entries if there are
            none); the scale whose replay gives the stored numbers, if only a replay could tell.
        strength_error: Largest error of the strength that rounding can cause; None if rounding hides all
            entries.
        residual: ‖D − strength · E‖_F / ‖E‖_F.
        rounding: ‖b‖_F / ‖E‖_F, with b the largest difference that rounding can cause in each entry; see
            :mod:`intruscope.verify.rounding`.
        update_norm: ‖E‖_F.
        num_resolved: Entries where rounding is smaller than a quarter of the update, so that half an update
            and a whole one give different numbers.
        num_changed: Entries of the merged matrix that differ from the base.
        replay: How a merge was computed that gives exactly the stored numbers; None if that was not needed,
            or none does.
        cause: What probably went wrong.
        reason: Why it is open; empty otherwise.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, int]
    dtype: str | None
    status: ModuleStatus
    strength: float | None = None
    strength_error: float | None = None
    residual: float | None = None
    rounding: float | None = None
    update_norm: float | None = None
    num_resolved: int = 0
    num_changed: int = 0
    replay: str | None = None
    cause: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class OtherTensor:
    """A tensor that no adapter changes and that is not the same in the base and the merged model.

    Attributes:
        name: As stored in the base, or in the merged model if the base has none.
        status: ``changed``; ``resized``: another number of words, and the common ones are equal; ``new``: the
            merged model alone has it; ``dropped``: the base alone has it; ``open``: it cannot be compared.
        relative_change: ‖merged − base‖_F / ‖base‖_F; None where there is nothing to compare.
        reason: One clause.
        expected: The files explain it, so it is no failure and leaves nothing open.
    """

    name: str
    status: OtherStatus
    relative_change: float | None = None
    reason: str = ""
    expected: bool = False


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """One adapter and the weight it should have in the merged model."""

    name: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class BaseFit:
    """How well one base explains the merged model.

    Attributes:
        name: The base.
        num_applied: Modules that agree with this base and the adapters.
        num_modules: Modules that the adapters change.
        num_equal: Tensors that no adapter changes and that are equal in this base and in the merged model.
        num_untouched: Tensors that no adapter changes.
        relative_residual: ‖D − E‖_F / ‖E‖_F over all modules; None if no module could be compared.
    """

    name: str
    num_applied: int
    num_modules: int
    num_equal: int
    num_untouched: int
    relative_residual: float | None


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Report):
    """Whether a merged model is its base with the adapters applied.

    Attributes:
        base, merged: The models, with revisions.
        adapters: What should be in the merged model.
        verdict: ``applied``: every module holds the adapters. ``not applied``: no module does, not even in
            part. ``partly``: some modules do, or do at another scale. ``open``: no module failed, but some
            could not be judged.
        modules: Every matrix and vector that an adapter changes.
        others: Every other tensor that is not equal in both models.
        num_equal: Number of other tensors that are equal.
        equals_base: The merged model holds the same numbers as the base, in all tensors.
        bases: How well each base fits, if there were two; the first is the one that the rest of the report
            is about.
        complete: Whether everything in the adapters and both models was compared.
        findings: Remarks.
        environment: Versions.
    """

    schema: ClassVar[str] = SCHEMA
    columns: ClassVar[Mapping[str, str]] = {
        "name": "string",
        "kind": "string",
        "layer": "int32",
        "rows": "int64",
        "columns": "int64",
        "dtype": "string",
        "status": "string",
        "strength": "double",
        "strength_error": "double",
        "residual": "double",
        "rounding": "double",
        "update_norm": "double",
        "num_resolved": "int64",
        "num_changed": "int64",
        "replay": "string",
        "cause": "string",
        "reason": "string",
    }

    base: str
    adapters: tuple[AdapterUse, ...]
    merged: str
    verdict: Verdict
    modules: tuple[ModuleCheck, ...]
    others: tuple[OtherTensor, ...]
    num_equal: int
    equals_base: bool
    complete: bool
    findings: tuple[Finding, ...]
    environment: Mapping[str, Any]
    bases: tuple[BaseFit, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """Number of modules by status."""
        return Counter(module.status for module in self.modules)

    @property
    def unexplained(self) -> tuple[OtherTensor, ...]:
        """Other tensors whose numbers changed without a reason in the files."""
        return tuple(each for each in self.others if each.status == "changed" and not each.expected)

    @property
    def has_failed(self) -> bool:
        """Whether a module failed or an unrelated tensor changed (exit code 1)."""
        return bool(self.unexplained) or any(module.status in FAILED for module in self.modules)

    @property
    def is_open(self) -> bool:
        """Whether anything could not be judged (exit code 5 if nothing failed)."""
        unjudged = any(each.status != "changed" and not each.expected for each in self.others)
        return not self.complete or unjudged or any(module.status == "open" for module in self.modules)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row for each module."""
        for each in self.modules:
            yield (
                each.name,
                each.kind,
                each.layer,
                *each.shape,
                each.dtype,
                each.status,
                each.strength,
                each.strength_error,
                each.residual,
                each.rounding,
                each.update_norm,
                each.num_resolved,
                each.num_changed,
                each.replay,
                each.cause,
                each.reason,
            )

    def notebook(self) -> Sequence[str]:
        """The sentence, the modules that failed, and what else changed."""
        from intruscope.verify.notebook import verify_pieces

        return verify_pieces(self)
