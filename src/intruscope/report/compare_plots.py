"""The pictures of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.compare.words import pair_name
from intruscope.plots.compare import (
    MAX_PAIRS,
    Cells,
    ComparedPair,
    Forgotten,
    Inflation,
    IntruderBar,
    forgetting_figure,
    inflation_figure,
    intruders_figure,
    maps_figure,
    pairs_figure,
)
from intruscope.plots.figures import write_figures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from intruscope.compare.records import CompareReport, IntruderCount, PairReport


def write_compare_plots(report: CompareReport, folder: Path) -> tuple[str, ...]:
    """Write every picture that the report has figures for.

    Args:
        report: The comparison.
        folder: Created if it does not exist.

    Returns:
        The names of the files: ``pairs`` and ``cosine-maps`` (of the pairs with the largest cosines, either
        way), ``inflation``, with a base ``intruders``, and with a text ``forgetting``; each as ``.png`` and
        ``.svg``.

    Raises:
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """
    pairs = _pairs(report)

    def draw() -> Iterator[tuple[str, object]]:
        for name, figure in (
            ("pairs", pairs_figure(pairs)),
            ("cosine-maps", maps_figure(pairs)),
            ("inflation", inflation_figure(_inflations(report))),
            ("intruders", intruders_figure(_intruders(report))),
            ("forgetting", forgetting_figure(_forgotten(report))),
        ):
            if figure is not None:
                yield name, figure

    return write_figures(draw, folder)


def _pairs(report: CompareReport) -> list[ComparedPair]:
    known = [(pair, pair.cosine) for pair in report.pairs if pair.cosine is not None]
    known.sort(key=lambda each: -abs(each[1]))
    return [
        ComparedPair(
            name=pair_name(pair),
            cosine=cosine,
            cosine_spread=pair.cosine_random_spread,
            shared_a_spread=pair.cosine_shared_a_spread,
            overlaps={
                "column spaces (outputs)": (pair.left_overlap, pair.left_overlap_random),
                "row spaces (inputs)": (pair.right_overlap, pair.right_overlap_random),
            },
            cells=_cells(report, pair),
        )
        for pair, cosine in known[:MAX_PAIRS]
    ]


def _cells(report: CompareReport, pair: PairReport) -> Cells:
    places = {module.name: module for module in report.merge.modules}
    cells: Cells = {}
    for module in pair.modules:
        whole = places.get(module.name)
        if whole is not None and whole.layer is not None and module.cosine is not None:
            key = (whole.kind, whole.layer)
            cells[key] = max(cells.get(key, 0.0), abs(module.cosine))
    return cells


def _inflations(report: CompareReport) -> list[Inflation]:
    """The inflation of each matrix that several fine-tunes change; with one, it is always 1."""
    return [
        Inflation(
            layer=module.layer,
            found=module.inflation,
            random=module.inflation_random,
            shared_a=module.inflation_shared_a,
        )
        for module in report.merge.modules
        if module.inflation is not None and sum(energy > 0.0 for energy in module.energies) > 1
    ]


def _intruders(report: CompareReport) -> list[IntruderBar]:
    flight = report.merge.preflight
    if flight is None:
        return []

    def bar(name: str, role: str, count: IntruderCount) -> IntruderBar:
        new = count.num_new or 0
        return IntruderBar(name=name, role=role, num_known=count.num_intruders - new, num_new=new)

    labels = [member.label for member in report.fine_tunes]
    weight = f"{report.merge.weight:.3g} of each"
    return [
        *(bar(label, "part", count) for label, count in zip(labels, flight.parts, strict=True)),
        bar(f"merge, {weight}", "merge", flight.merge),
        bar(f"merge in random directions, {weight}", "control", flight.random_merge),
        bar("sum at the norm of one part", "control", flight.equal_norm),
    ]


def _forgotten(report: CompareReport) -> list[Forgotten]:
    measured = report.merge.forgetting
    if measured is None:
        return []
    return [
        Forgotten(
            name=model.name,
            is_part=model.part,
            estimate=model.forgetting.estimate,
            low=model.forgetting.low,
            high=model.forgetting.high,
        )
        for model in measured.models
    ]
