"""Several fine-tunes of one base as pictures: how they relate and what their sum does, beside controls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.plots.draw import cells_bar, draw_cells, new_figure, whole_numbers
from intruscope.plots.style import INK, SERIES, SOFT, drawable
from intruscope.spectra.kinds import in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_PAIRS = 24
"""Pairs in one picture: those with the largest cosines, either way."""
MAX_MAPS = 6
"""Maps in one picture, of the same pairs."""
_CONTROL = SOFT
_ROW_INCHES = 0.42

Cells = dict[tuple[str, int], float]
"""A figure by kind and layer."""


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """Two fine-tunes, with what unrelated updates give.

    Attributes:
        name: Of both.
        cosine: Of the whole updates.
        cosine_spread: Standard deviation of the cosine over random directions; None if unknown.
        shared_a_spread: The same if both started from the same A; None if unknown.
        overlaps: By side of the matrices, the overlap of the spaces and that of random spaces.
        cells: Largest cosine of a kind in a layer, without its sign.
    """

    name: str
    cosine: float
    cosine_spread: float | None
    shared_a_spread: float | None
    overlaps: Mapping[str, tuple[float | None, float | None]]
    cells: Cells


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """The sum of the updates of one matrix: largest singular value over the largest of any part.

    Attributes:
        layer: Of the matrix; None outside the blocks.
        found: As it is.
        random: In random directions.
        shared_a: For unrelated updates from the same A; None unless all are low-rank.
    """

    layer: int | None
    found: float
    random: float | None
    shared_a: float | None


@dataclass(frozen=True, kw_only=True)
class IntruderBar:
    """Intruders of one model.

    Attributes:
        name: Of the model.
        role: What kind of model it is.
        num_known: Intruders that a part has too; of a part, all.
        num_new: Those that no part has.
    """

    name: str
    role: str
    num_known: int
    num_new: int


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """Forgetting of one model in nats per token, with its interval.

    Attributes:
        name: Of the model.
        is_part: It is one of the fine-tunes, not a merge.
        estimate, low, high: The loss on the text less that of the base.
    """

    name: str
    is_part: bool
    estimate: float
    low: float
    high: float


def pairs_figure(pairs: Sequence[ComparedPair]) -> Any:
    """Cosine and overlap of each pair, beside those of unrelated updates; None without a pair."""
    if not pairs:
        return None
    figure = new_figure(11.4, 1.9 + _ROW_INCHES * len(pairs))
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(pairs))
    for label, colour, width, spreads in (
        (
            "cosine if unrelated, from the same A (±2 s.d.)",
            SERIES[2],
            11.0,
            [pair.shared_a_spread for pair in pairs],
        ),
        ("cosine if unrelated (±2 s.d.)", _CONTROL, 5.0, [pair.cosine_spread for pair in pairs]),
    ):
        known = [(row, 2.0 * each) for row, each in zip(rows, spreads, strict=True) if each is not None]
        if known:
            at, reach = zip(*known, strict=True)
            left.hlines(
                at, [-each for each in reach], reach, color=colour, linewidth=width, alpha=0.35, label=label
            )
    left.axvline(0, color=SOFT, linewidth=0.9)
    left.plot(
        [pair.cosine for pair in pairs], rows, color=SERIES[0], marker="o", linestyle="none", label="cosine"
    )
    left.set_title("cosine of the updates")
    left.set_yticks(rows, [drawable(pair.name, limit=40) for pair in pairs])
    left.set_ylim(len(pairs) - 0.4, -0.6)
    for place, side in enumerate(pairs[0].overlaps):
        colour, marker = SERIES[(0, 1)[place % 2]], ("o", "D")[place % 2]
        values = [pair.overlaps[side] for pair in pairs]
        for which, face, label in (
            (0, colour, side),
            (1, "none", f"{side}, random"),
        ):
            known = [
                (row, 100.0 * value)
                for row, each in zip(rows, values, strict=True)
                if (value := each[which]) is not None
            ]
            right.plot(
                [value for _, value in known],
                [row for row, _ in known],
                color=colour,
                markerfacecolor=face,
                marker=marker,
                linestyle="none",
                label=label,
            )
    right.set_title("overlap of the spaces (%)")
    right.set_xlim(left=0)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def maps_figure(pairs: Sequence[ComparedPair]) -> Any:
    """Absolute cosine by kind and layer, a map for each of the first pairs; None where no layer is known."""
    shown = [pair for pair in pairs if pair.cells][:MAX_MAPS]
    if not shown:
        return None
    kinds = in_order(kind for pair in shown for kind, _ in pair.cells)
    layers = sorted({layer for pair in shown for _, layer in pair.cells})
    top = max(0.1, *(100.0 * value for pair in shown for value in pair.cells.values()))
    figure = new_figure(
        min(22.0, 3.2 + max(6.0, 0.36 * len(layers))), (1.0 + 0.36 * len(kinds)) * len(shown) + 0.4
    )
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    image = None
    for axes, pair in zip(panels, shown, strict=True):
        grid = [[100.0 * pair.cells.get((kind, layer), math.nan) for layer in layers] for kind in kinds]
        image = draw_cells(axes, grid, kinds, layers, top)
        axes.set_title(drawable(pair.name))
    panels[-1].set_xlabel("layer")
    cells_bar(figure, image, panels, "|cosine| of the updates (hundredths)")
    return figure


def inflation_figure(matrices: Sequence[Inflation]) -> Any:
    """Inflation of each matrix in the order of the model, beside its controls; None without one."""
    if not matrices:
        return None
    figure = new_figure(11.0, 4.4)
    axes = figure.subplots()
    places = range(len(matrices))
    axes.axhline(1.0, color=INK, linestyle=":", linewidth=1.2)
    size = max(2.0, min(6.0, 400.0 / len(matrices)))
    axes.plot(
        places,
        [each.found for each in matrices],
        color=SERIES[1],
        marker="o",
        markersize=size,
        linestyle="none",
        label="the sum",
    )
    for label, colour, line, values in (
        ("in random directions", _CONTROL, "-", [each.random for each in matrices]),
        ("unrelated, from the same A", SERIES[2], "--", [each.shared_a for each in matrices]),
    ):
        if any(value is not None for value in values):
            shown = [math.nan if value is None else value for value in values]
            axes.plot(places, shown, color=colour, linestyle=line, linewidth=1.6, label=label)
    starts = [
        (place, each.layer)
        for place, each in enumerate(matrices)
        if not place or each.layer != matrices[place - 1].layer
    ]
    every = max(1, math.ceil(len(starts) / 34))
    axes.set_xticks(
        [place for place, _ in starts[::every]],
        ["–" if layer is None else str(layer) for _, layer in starts[::every]],
    )
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.set_title("Inflation of the sum")
    axes.set_xlabel("matrices in the order of the model; ticks are layers")
    axes.set_ylabel("largest singular value of the sum\nover the largest of any part")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def intruders_figure(bars: Sequence[IntruderBar]) -> Any:
    """Intruders of the parts, of the merge and of its controls; None without a model."""
    if not bars:
        return None
    figure = new_figure(9.4, 1.6 + _ROW_INCHES * len(bars))
    axes = figure.subplots()
    colours = {role: SERIES[place] for place, role in enumerate(dict.fromkeys(bar.role for bar in bars))}
    for row, bar in enumerate(bars):
        axes.barh(row, bar.num_known, height=0.62, color=colours[bar.role], alpha=0.55)
        axes.barh(row, bar.num_new, left=bar.num_known, height=0.62, color=colours[bar.role])
        said = f" {bar.num_known + bar.num_new}" + (f", {bar.num_new} new" if bar.num_new else "")
        axes.text(bar.num_known + bar.num_new, row, said, va="center", color=INK, fontsize=10)
    axes.set_yticks(range(len(bars)), [drawable(bar.name, limit=44) for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(1, *(bar.num_known + bar.num_new for bar in bars)))
    axes.xaxis.set_major_locator(whole_numbers())
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_title("Intruders; those that no part has are dark")
    axes.set_xlabel("intruders (left singular vectors)")
    return figure


def forgetting_figure(models: Sequence[Forgotten]) -> Any:
    """Forgetting of the parts, the merge and the sum, with intervals; None without a model."""
    if not models:
        return None
    figure = new_figure(9.4, 1.6 + _ROW_INCHES * len(models))
    axes = figure.subplots()
    axes.axvline(0, color=SOFT, linewidth=0.9)
    for row, model in enumerate(models):
        axes.errorbar(
            [model.estimate],
            [row],
            xerr=[[max(0.0, model.estimate - model.low)], [max(0.0, model.high - model.estimate)]],
            color=SERIES[0] if model.is_part else SERIES[1],
            marker="o" if model.is_part else "D",
            capsize=4,
            linewidth=1.8,
        )
    axes.set_yticks(range(len(models)), [drawable(model.name, limit=44) for model in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Forgetting of the fine-tunes, of their merge and of their sum")
    axes.set_xlabel("loss on the text minus the base's (nats per token)")
    return figure
