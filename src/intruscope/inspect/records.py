"""What an inspection reports, as frozen records; :meth:`InspectReport.save` writes the public JSON schema.

A value that does not exist is None; no field is ever NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.records.report import Report
from intruscope.weights.matrices import Finding  # noqa: TC001 - decoding reads the hints when it runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.inspect/1"
INTRUDERS_NEED_THE_BASE = (
    "Intruder dimensions are not in this report: they are defined against the base's singular vectors. "
    "Run intruscope scan BASE ADAPTER to find them."
)
COLUMNS = {
    "adapter": "string",
    "module": "string",
    "kind": "string",
    "layer": "int64",
    "rows": "int64",
    "columns": "int64",
    "part": "string",
    "rank": "int64",
    "numerical_rank": "int64",
    "effective_rank": "double",
    "frobenius_norm": "double",
    "spectral_norm": "double",
    "scaling": "double",
}

Part = Literal["update", "factors"]


@dataclass(frozen=True, kw_only=True)
class InspectedModule:
    """The update of one module.

    Attributes:
        name: Of the module, as the adapter spells it.
        kind: ``q k v o gate up down embedding head conv other`` and the like.
        layer: Index of the block; None outside the blocks.
        shape: (out, in). Of fused experts, in the orientation of the adapter's factors.
        part: ``update``: ΔW. ``factors``: s B A alone, where the whole update needs the base (``unread``
            says why).
        rank: Rank that the factors allow: their inner size, or the smaller side of an update without factors.
        singular_values: Of the update, descending, as many as ``rank`` and the smaller side allow; None where
            they were not computed (a finding says why).
        frobenius_norm: ‖ΔW‖_F; None where the update is not finite.
        effective_rank: ``exp(H(σ/Σσ))``; 0 for a zero update.
        numerical_rank: Number of singular values above float32's rounding of the factors: those not above
            ``2^-23 ‖s B‖_F ‖A‖_F`` (of an update without factors: ``2^-23 ‖ΔW‖_F``) cannot be told from zero.
        scaling: s of s B A; None for kinds that scale otherwise.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, int]
    part: Part
    rank: int
    singular_values: tuple[float, ...] | None
    frobenius_norm: float | None
    effective_rank: float | None
    numerical_rank: int | None
    scaling: float | None

    @property
    def family(self) -> str:
        """The end of its name, which modules of one role share: ``q_proj``, ``to_out.0``."""
        words = self.name.partition("[")[0].split(".")
        return ".".join(words[-2:] if words[-1].isdecimal() else words[-1:])

    @property
    def spectral_norm(self) -> float | None:
        """The largest singular value."""
        return self.singular_values[0] if self.singular_values else None


@dataclass(frozen=True, kw_only=True)
class UninspectedModule:
    """A module whose update the adapter alone does not determine.

    Attributes:
        name: Of the module.
        reason: One clause.
        num_parameters: Numbers that the adapter stores of it.
    """

    name: str
    reason: str
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class AdapterFailure:
    """Why one adapter of several could not be read.

    Attributes:
        id: Kind of error, as in ``docs/exit-codes.md``.
        exit_code: What the command would exit with for this adapter alone.
        message: The error.
    """

    id: str
    exit_code: int
    message: str


@dataclass(frozen=True, kw_only=True)
class InspectedAdapter:
    """One adapter.

    Attributes:
        name: As it was given.
        kind: Its kind (LoRA, AdaLoRA ...); None if it could not be read.
        base: The base that it names.
        rank: ``r`` of its config; None for kinds without one.
        alpha: ``lora_alpha``, given or stored; None for kinds without one.
        use_rslora: s is alpha / √r instead of alpha / r.
        num_parameters: Numbers that it stores.
        frobenius_norm: √(Σ‖ΔW‖_F²) over the modules with a known update.
        modules: Every module with a spectrum, in the order of the adapter.
        unread: Every module whose update needs the base.
        fingerprint: 16 random linear functionals of all updates together, the same for every adapter with
            modules of the same names and shapes. The mean squared difference of two fingerprints estimates
            ‖ΔW₁ − ΔW₂‖_F² without bias, so they are compared by distance and do not depend on how an update
            is factored. None where no update is known.
        findings: Findings.
        failure: Why it could not be read; everything else is then empty.
    """

    name: str
    kind: str | None
    base: str | None
    rank: int | None
    alpha: float | None
    use_rslora: bool
    num_parameters: int
    frobenius_norm: float | None
    modules: tuple[InspectedModule, ...]
    unread: tuple[UninspectedModule, ...]
    fingerprint: tuple[float, ...] | None
    findings: tuple[Finding, ...]
    failure: AdapterFailure | None = None

    @property
    def complete(self) -> bool:
        """Whether it was read, and every update that it determines is finite and was decomposed."""
        return self.failure is None and all(module.singular_values is not None for module in self.modules)


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """An adapter whose update is that of an earlier one, or a multiple of it.

    Attributes:
        adapter: Index of the later adapter in ``adapters``.
        of: Index of the earlier one.
        scale: c of ΔW ≈ c ΔW', by least squares; about 1 for the same update.
        relative_difference: ‖ΔW − c ΔW'‖_F / ‖ΔW‖_F.
    """

    adapter: int
    of: int
    scale: float
    relative_difference: float


@dataclass(frozen=True, kw_only=True)
class InspectReport(Report):
    """Adapters on their own.

    Attributes:
        adapters: In the order in which they were given.
        duplicates: Adapters with the update of an earlier one.
        note: What an adapter alone cannot show.
    """

    schema = SCHEMA
    columns = COLUMNS

    adapters: tuple[InspectedAdapter, ...]
    duplicates: tuple[Duplicate, ...] = ()
    note: str = INTRUDERS_NEED_THE_BASE

    @property
    def complete(self) -> bool:
        """Whether every adapter is complete."""
        return all(adapter.complete for adapter in self.adapters)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row for each module."""
        for adapter in self.adapters:
            for module in adapter.modules:
                yield (
                    adapter.name,
                    module.name,
                    module.kind,
                    module.layer,
                    *module.shape,
                    module.part,
                    module.rank,
                    module.numerical_rank,
                    module.effective_rank,
                    module.frobenius_norm,
                    module.spectral_norm,
                    module.scaling,
                )

    def notebook(self) -> Sequence[str]:
        """The adapters as a table, with what is wrong."""
        from intruscope.inspect.notebook import inspect_pieces

        return inspect_pieces(self)
