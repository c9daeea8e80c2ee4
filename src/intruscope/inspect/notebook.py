"""What an inspection looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.inspect.words import duplicate_sentence, families, span
from intruscope.records import notebook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.inspect.records import InspectReport


def inspect_pieces(report: InspectReport) -> Sequence[str]:
    """A line and a table of families for each adapter, then duplicates and what is wrong."""
    pieces = []
    for adapter in report.adapters:
        title = adapter.name if adapter.base is None else f"{adapter.name}, for {adapter.base}"
        pieces.append(notebook.line(title, "top"))
        if adapter.failure is not None:
            pieces.append(notebook.line(adapter.failure.message, "warn"))
            continue
        rows = [
            (
                family.name,
                len(family.modules),
                span([m.rank for m in family.modules]),
                span([m.effective_rank for m in family.modules]),
                span([m.frobenius_norm for m in family.modules]),
            )
            for family in families(adapter.modules)
        ]
        columns = ("modules called", "number", "rank", "effective rank", "norm of ΔW")
        pieces.append(notebook.table(f"{adapter.kind}, {len(adapter.modules)} modules", columns, rows))
        grave = [finding for finding in adapter.findings if finding.severity != "info"]
        pieces += [
            notebook.line(f"{f.severity}: {f.matrix + ': ' if f.matrix else ''}{f.message}", "warn")
            for f in grave[:3]
        ]
    pieces += [notebook.line(duplicate_sentence(report, each), "warn") for each in report.duplicates]
    return [*pieces, notebook.line(report.note, "note")]
