"""Records of a merge, as in the plan, in the manifest beside the weights, and in the terminal.

Figures that are only known once the merge is computed are None in a plan.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - decoding reads the hints when it runs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.merge.settings import MergeSettings  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.records.notebook import facts, headline, line, table
from intruscope.records.report import Report
from intruscope.weights.matrices import Finding  # noqa: TC001 - decoding reads the hints when it runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.merge/1"

Writes = Literal["adapter", "checkpoint", "emr"]
"""What the output is: a LoRA adapter, a full checkpoint, or the files of EMR-Merging."""

_MAX_ROWS = 12
_COLUMNS = {
    "module": "string",
    "label": "string",
    "rank": "int64",
    "update_norm": "float64",
    "merged_rank": "int64",
    "merged_norm": "float64",
    "relative_error": "float64",
}


@dataclass(frozen=True, kw_only=True)
class MergedModule:
    """One module that is merged.

    Attributes:
        name: In the base's files.
        module: In the output adapter; the name in the files for a checkpoint.
        shape: (out, in).
        ranks: Of each fine-tune's factors; None for a dense update or a rank that only the numbers tell, 0
            where a fine-tune leaves the module alone.
        update_norms: ‖ΔW‖_F of each fine-tune, without its weight.
        merged_norm: ‖ΔW‖_F of the merged update, before it is cut to a rank or rounded.
        rank: Rank of the merged update as written; None for a dense one.
        relative_error: ‖ΔW − B A‖_F / ‖ΔW‖_F of the factors as written; None for a checkpoint.
        smallest_gap: Smallest relative gap between the singular values that define the bases; None where the
            rule does not depend on them.
    """

    name: str
    module: str
    shape: tuple[int, int]
    ranks: tuple[int | None, ...]
    update_norms: tuple[float, ...] | None = None
    merged_norm: float | None = None
    rank: int | None = None
    relative_error: float | None = None
    smallest_gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class EmrFigures:
    """What the files of EMR-Merging weigh.

    Attributes:
        rescalers: One per fine-tune.
        mask_densities: Share of entries that each mask keeps.
        unified_bytes: The unified update with its bases, stored once.
        mask_bytes: All masks together, packed as bits.
        input_bytes: The fine-tunes themselves, for comparison.
    """

    rescalers: tuple[float, ...]
    mask_densities: tuple[float, ...]
    unified_bytes: int
    mask_bytes: int
    input_bytes: int

    @property
    def num_bytes(self) -> int:
        """Everything that EMR stores."""
        return self.unified_bytes + self.mask_bytes


@dataclass(frozen=True, kw_only=True)
class MergeReport(Report):
    """What is merged and how; once it is written, also what came out.

    Its table has one row per module and fine-tune.

    Attributes:
        base: Name of the base.
        tuned: Names of the fine-tunes.
        labels: A short name for each.
        settings: What was asked for.
        space: The space in which the rule acts.
        density: Fraction of entries that are kept; None for rules without one.
        writes: ``adapter``, ``checkpoint`` or ``emr``.
        out: The folder; None for a plan.
        rank: Of the adapter, as its config says; None for other outputs and plans.
        modules: Every merged module, in the order of the base.
        vectors: Names of the merged biases and norms.
        vector_rule: Rule for these; None where there are none.
        left_out: Names of biases and norms that changed and that the output cannot hold.
        heads: Modules saved whole that each fine-tune has.
        kept_heads: Label of the fine-tune whose heads the output holds; None for none.
        relative_error: ‖ΔW − B A‖_F / ‖ΔW‖_F over all modules, of an adapter that was written.
        emr: Figures of EMR-Merging's files.
        findings: What the reader must know.
    """

    schema = SCHEMA
    columns = _COLUMNS

    base: str
    tuned: tuple[str, ...]
    labels: tuple[str, ...]
    settings: MergeSettings
    space: str
    density: float | None
    writes: Writes
    out: str | None = None
    rank: int | None = None
    modules: tuple[MergedModule, ...]
    vectors: tuple[str, ...] = ()
    vector_rule: str | None = None
    left_out: tuple[str, ...] = ()
    heads: Mapping[str, tuple[str, ...]]
    kept_heads: str | None = None
    relative_error: float | None = None
    emr: EmrFigures | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def worst(self) -> MergedModule | None:
        """The module with the largest relative error; None where none was measured."""
        known = [module for module in self.modules if module.relative_error is not None]
        return max(known, key=lambda module: module.relative_error or 0.0, default=None)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per module and fine-tune."""
        for module in self.modules:
            norms = module.update_norms or (None,) * len(self.labels)
            for label, rank, norm in zip(self.labels, module.ranks, norms, strict=True):
                yield (
                    module.name,
                    label,
                    rank,
                    norm,
                    module.rank,
                    module.merged_norm,
                    module.relative_error,
                )

    def notebook(self) -> Sequence[str]:
        """What was merged, the figures of the largest modules, and findings."""
        largest = sorted(self.modules, key=lambda module: -(module.merged_norm or 0.0))
        rows = [
            (
                module.name,
                "×".join(map(str, module.shape)),
                module.rank,
                module.merged_norm,
                module.relative_error,
            )
            for module in largest[:_MAX_ROWS]
        ]
        return [
            line(f"base {self.base} · {' · '.join(self.labels)}", "top"),
            headline(self.settings.rule, f"of {len(self.labels)} fine-tunes, {len(self.modules)} modules"),
            facts(
                {
                    "writes": self.writes,
                    "space": self.space,
                    "rank": None if self.rank is None else str(self.rank),
                    "relative error": None if self.relative_error is None else f"{self.relative_error:.3g}",
                }
            ),
            table("Modules", ("module", "shape", "rank", "norm", "error"), rows),
            *(line(finding.message, "warn") for finding in self.findings if finding.severity != "info"),
        ]
