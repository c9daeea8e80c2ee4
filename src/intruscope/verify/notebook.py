"""What a verification looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.records import notebook
from intruscope.verify.words import by_attention, verify_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.verify.records import VerifyReport

_NUM_ROWS = 12


def verify_pieces(report: VerifyReport) -> Sequence[str]:
    """The verdict, what it means, the modules that need attention first, and what else changed."""
    grave = [finding for finding in report.findings if finding.severity != "info"]
    adapters = " + ".join(
        each.name if each.weight == 1 else f"{each.weight:g} {each.name}" for each in report.adapters
    )
    rows = [
        (module.name, module.status, module.strength, module.residual, module.cause or module.reason)
        for module in by_attention(report.modules)[:_NUM_ROWS]
    ]
    others = [(each.name, each.status, each.relative_change, each.reason) for each in report.others]
    return [
        notebook.line(f"{report.base} + {adapters} → {report.merged}", "top"),
        notebook.headline(report.verdict, verify_sentence(report)),
        *[notebook.line(f"{f.severity}: {f.message}", "warn") for f in grave[:3]],
        notebook.table("Modules", ("module", "status", "strength", "residual", "remark"), rows),
        notebook.table("Other tensors", ("tensor", "status", "change", "remark"), others[:_NUM_ROWS]),
        notebook.line("One row per module: report.to_pandas().", "note"),
    ]
