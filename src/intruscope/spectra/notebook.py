"""What a scan looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.records import notebook
from intruscope.spectra.kinds import in_order
from intruscope.spectra.words import CHANCE_METHODS, count, percent, rank_range, top_energy, update_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.spectra.records import MatrixReport, ScanReport

_NUM_TOP = 8


def scan_pieces(report: ScanReport) -> Sequence[str]:
    """The headline beside chance, the size of the update, a map of layers and kinds, the top matrices."""
    totals = report.totals
    findings = [*report.findings, *(finding for matrix in report.matrices for finding in matrix.findings)]
    grave = [finding for finding in findings if finding.severity != "info"]
    chance = totals.chance
    expected = (
        ""
        if chance is None
        else f"; by chance {count(chance.expected)} ({count(chance.low)} to {count(chance.high)})"
    )
    return [
        notebook.line(f"{report.base} → {report.tuned}", "top"),
        notebook.headline(
            f"{totals.num_intruders} {'intruder' if totals.num_intruders == 1 else 'intruders'}",
            f"of {totals.num_vectors} leading singular vectors, in {totals.matrices_with_intruders} of "
            f"{totals.num_measured} matrices{expected}",
        ),
        notebook.facts(
            {
                "size of ΔW": update_size(totals.relative_update_norm, totals.relative_update_norms),
                "effective rank of ΔW": rank_range(totals.effective_ranks),
                f"ΔW in the base's top {report.settings.k}": top_energy(
                    totals.top_energy_fraction, totals.top_energy_chance
                ),
                "undecided": str(totals.num_undecided) if totals.num_undecided else None,
                "energy in intruders": None
                if not totals.num_intruders or totals.max_tuned_energy_fraction is None
                else f"up to {percent(totals.max_tuned_energy_fraction)} of a tuned matrix",
            }
        ),
        *[notebook.line(f"{f.severity}: {f.message}", "warn") for f in grave[:3]],
        *(
            []
            if report.complete
            else [notebook.line("This scan is incomplete; see report.coverage.", "warn")]
        ),
        notebook.side_by_side(_map(report), _top(report)),
        *(
            []
            if chance is None
            else [
                notebook.line(
                    f"By chance: {CHANCE_METHODS[chance.method]}. One row per vector: report.to_pandas().",
                    "note",
                )
            ]
        ),
    ]


def _map(report: ScanReport) -> str:
    counts: dict[tuple[str, str], float] = {}
    for matrix in report.measured:
        place = (matrix.kind, _layer(matrix))
        counts[place] = counts.get(place, 0) + matrix.sides[0].num_intruders
    layers = sorted({matrix.layer for matrix in report.measured if matrix.layer is not None})
    columns = [str(layer) for layer in layers]
    if any(matrix.layer is None for matrix in report.measured):
        columns.append("–")
    kinds = in_order({matrix.kind for matrix in report.measured})
    return notebook.heat_map("Intruders by kind (down) and layer (across)", kinds, columns, counts)


def _layer(matrix: MatrixReport) -> str:
    return "–" if matrix.layer is None else str(matrix.layer)


def _top(report: ScanReport) -> str:
    most = sorted(report.measured, key=lambda matrix: -matrix.sides[0].num_intruders)
    rows = [
        (
            matrix.name,
            matrix.sides[0].num_intruders,
            None if matrix.sides[0].chance is None else matrix.sides[0].chance.mean,
            None
            if matrix.update is None or matrix.update.relative_frobenius_norm is None
            else percent(matrix.update.relative_frobenius_norm),
        )
        for matrix in most[:_NUM_TOP]
        if matrix.sides[0].num_intruders
    ]
    return notebook.table("Most intruders", ("matrix", "intruders", "by chance", "‖ΔW‖/‖W‖"), rows)
