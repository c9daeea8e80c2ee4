"""What a comparison looks like in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.compare.words import compare_sentence, number, pair_name, spread
from intruscope.records import notebook
from intruscope.spectra.kinds import in_order
from intruscope.spectra.words import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.compare.records import CompareReport, PairReport

_MAX_PAIRS = 12
_MAX_MAPS = 3


def compare_pieces(report: CompareReport) -> Sequence[str]:
    """The sentence, the fine-tunes, the pairs beside their nulls, and maps of |cosine|."""
    grave = [finding for finding in report.findings if finding.severity != "info"]
    return [
        notebook.line(report.base or "no base", "top"),
        notebook.line(compare_sentence(report), "top"),
        *[notebook.line(f"{f.severity}: {f.message}", "warn") for f in grave[:3]],
        *([] if report.complete else [notebook.line("This comparison is incomplete; see findings.", "warn")]),
        notebook.table(
            "Fine-tunes",
            ("fine-tune", "kind", "matrices", "norm of ΔW", "share of an equal-weight merge"),
            [
                (
                    member.label,
                    member.kind,
                    member.num_matrices,
                    member.energy**0.5,
                    None if member.share is None else percent(member.share),
                )
                for member in report.fine_tunes
            ],
        ),
        notebook.table(
            "Pairs (± standard deviation with random directions; with shared A)",
            ("pair", "cosine", "random", "shared A", "column spaces", "random", "row spaces", "random"),
            [
                (
                    pair_name(pair),
                    number(pair.cosine, 4),
                    spread(pair.cosine_random_spread),
                    spread(pair.cosine_shared_a_spread),
                    number(pair.left_overlap),
                    number(pair.left_overlap_random),
                    number(pair.right_overlap),
                    number(pair.right_overlap_random),
                )
                for pair in report.pairs[:_MAX_PAIRS]
            ],
        ),
        notebook.side_by_side(*(_map(report, pair) for pair in report.pairs[:_MAX_MAPS])),
        notebook.line("One row per pair and matrix: report.to_pandas().", "note"),
    ]


def _map(report: CompareReport, pair: PairReport) -> str:
    """|cosine| in hundredths by kind and layer."""
    places = {module.name: module for module in report.merge.modules}
    cells: dict[tuple[str, str], float] = {}
    for module in pair.modules:
        whole = places.get(module.name)
        if whole is None or whole.layer is None or module.cosine is None:
            continue
        key = (whole.kind, str(whole.layer))
        cells[key] = max(cells.get(key, 0.0), round(100 * abs(module.cosine)))
    kinds = in_order(kind for kind, _ in cells)
    layers = [str(layer) for layer in sorted({int(layer) for _, layer in cells})]
    return notebook.heat_map(f"|cosine| in hundredths, {pair_name(pair)}", kinds, layers, cells)
