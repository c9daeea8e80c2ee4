"""Records to matplotlib figures. Called inside :func:`intruscope.plots.style.picture_style`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from intruscope.plots.series import cell_counts, curves, effective_ranks, kinds_in_order
from intruscope.plots.style import INK, MARKERS, MISSING, SEQUENTIAL, SERIES, SOFT, VERDICTS, drawable
from intruscope.spectra import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.plots.series import CurvePoint, LayerRank
    from intruscope.spectra.records import MatrixReport, ScanReport, SimilarityMap

    Reports = Sequence[tuple[str, ScanReport]]

MAX_MAPS = 12
"""Similarity maps in one picture: those with the most intruders."""
CHANCE = "by chance: random directions, same singular values"
_MAX_NUMBERED_LAYERS = 48
_LOG_RATIO = 30.0
_PANELS_PER_ROW = 4


def heat_map_figure(reports: Reports) -> Any:
    """Intruders by layer (across) and kind (down), one panel per scan; None if nothing was measured."""
    counted = [(label, report, counts) for label, report in reports if (counts := cell_counts(report))]
    if not counted:
        return None
    kinds = kinds_in_order([report for _, report in reports])
    layers = sorted({layer for *_, counts in counted for _, layer in counts}, key=_layer_order)
    top = max(4, *(count for *_, counts in counted for count in counts.values()))
    figure = new_figure(
        min(22.0, 3.2 + max(6.0, 0.36 * len(layers))), (1.1 + 0.36 * len(kinds)) * len(counted) + 0.4
    )
    panels = figure.subplots(len(counted), 1, squeeze=False)[:, 0]
    image = None
    for axes, (label, report, counts) in zip(panels, counted, strict=True):
        grid = [[float(counts.get((kind, layer), math.nan)) for layer in layers] for kind in kinds]
        image = draw_cells(axes, grid, kinds, layers, top)
        axes.set_title(f"{drawable(label)}\n{_headline(report)}")
    panels[-1].set_xlabel("layer")
    bar = cells_bar(figure, image, panels, "intruders (vectors)")
    bar.locator = whole_numbers()
    bar.update_ticks()
    return figure


def draw_cells(
    axes: Any, grid: list[list[float]], kinds: Sequence[str], layers: Sequence[int | None], top: float
) -> Any:
    """A map by kind (down) and layer (across); the image, for its bar.

    Args:
        axes: Of the map.
        grid: A number for each kind and layer, NaN where there is none.
        kinds: Names of the rows.
        layers: Names of the columns.
        top: The number with the darkest colour.
    """
    # Cells as shapes with white seams: an SVG stays sharp and can be edited.
    image = axes.pcolormesh(
        range(len(layers)),
        range(len(kinds)),
        grid,
        cmap=colours(),
        vmin=0,
        vmax=top,
        edgecolors="white",
        linewidth=1.5,
    )
    axes.invert_yaxis()
    axes.set_yticks(range(len(kinds)), [drawable(kind, limit=16) for kind in kinds])
    every = max(1, math.ceil(len(layers) / 40))
    axes.set_xticks(range(0, len(layers), every), [_layer_name(each) for each in layers[::every]])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(layers) <= _MAX_NUMBERED_LAYERS:
        _write_counts(axes, grid, top)
    return image


def cells_bar(figure: Any, image: Any, panels: Any, label: str) -> Any:
    """The scale of maps beside them."""
    bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.015)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def _headline(report: ScanReport) -> str:
    totals = report.totals
    side = report.measured[0].sides[0].side
    chance = "" if totals.chance is None else f"; by chance {words.count(totals.chance.expected)}"
    return f"{totals.num_intruders} of {totals.num_vectors} leading {side} vectors are intruders{chance}"


def _write_counts(axes: Any, grid: list[list[float]], top: float) -> None:
    for row, counts in enumerate(grid):
        for column, count in enumerate(counts):
            if not math.isnan(count):
                colour = "white" if count > 0.55 * top else SOFT if count == 0 else INK
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=9)


def curve_figure(reports: Reports) -> Any:
    """Share of leading vectors below the threshold, over the threshold; None if nothing was measured.

    One scan: a line per k. Several: a line per scan, at its largest k.
    """
    drawn = [(index, label, report, curves(report)) for index, (label, report) in enumerate(reports)]
    drawn = [each for each in drawn if each[3]]
    if not drawn:
        return None
    figure = new_figure(8.6, 5.0)
    axes = figure.subplots()
    if len(drawn) == 1:
        _, _, report, by_cut = drawn[0]
        shades = SEQUENTIAL[3:8] if len(by_cut) > 1 else SEQUENTIAL[7:8]
        for place, (cut, points) in enumerate(by_cut.items()):
            shade = shades[min(len(shades) - 1, place + max(0, len(shades) - len(by_cut)))]
            _curve(axes, points, f"top {cut}", shade, MARKERS[place % len(MARKERS)])
        _chance(axes, report, INK, label=CHANCE)
    else:
        for index, label, report, by_cut in drawn:
            cut = max(by_cut)
            colour = SERIES[index % len(SERIES)]
            _curve(axes, by_cut[cut], f"{drawable(label)} (top {cut})", colour, MARKERS[index % len(MARKERS)])
            _chance(axes, report, colour, label=CHANCE if index == drawn[0][0] else "_nolegend_")
    for epsilon in sorted({report.settings.epsilon for _, _, report, _ in drawn}):
        axes.axvline(epsilon, color=SOFT, linestyle=":", linewidth=1.2, zorder=1)
    axes.set_title("Intruders by threshold")
    axes.set_xlabel("threshold epsilon (cosine)")
    axes.set_ylabel("leading vectors below the threshold (%)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    axes.legend(loc="upper left")
    return figure


def _curve(axes: Any, points: Sequence[CurvePoint], label: str, colour: str, marker: str) -> None:
    epsilons = [point.epsilon for point in points]
    found = [_percent(point.num_intruders, point.num_candidates) for point in points]
    most = [_percent(point.num_intruders + point.num_undecided, point.num_candidates) for point in points]
    axes.plot(epsilons, found, color=colour, marker=marker, linewidth=2.2, label=label, clip_on=False)
    if most != found:
        axes.fill_between(epsilons, found, most, color=colour, alpha=0.2, linewidth=0)


def _chance(axes: Any, report: ScanReport, colour: str, *, label: str) -> None:
    """What random directions give, at the threshold for which it was counted."""
    totals = report.totals
    chance = totals.chance
    if chance is None:
        return
    mean, low, high = (
        _percent(number, totals.num_vectors) for number in (chance.expected, chance.low, chance.high)
    )
    axes.errorbar(
        [report.settings.epsilon],
        [mean],
        yerr=[[mean - low], [high - mean]],
        color=colour,
        marker="_",
        markersize=26,
        markeredgewidth=2,
        capsize=5,
        linestyle="none",
        label=label,
        clip_on=False,
    )


def alignment_figure(reports: Reports) -> Any:
    """Bounds of every leading vector in the order of the model, a panel per scan; None if none."""
    drawn = [(label, report, report.measured) for label, report in reports]
    drawn = [each for each in drawn if each[2]]
    if not drawn:
        return None
    figure = new_figure(11.0, 3.4 * len(drawn) + 0.5)
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axes, (label, report, matrices) in zip(panels, drawn, strict=True):
        _bounds(axes, matrices)
        axes.axhline(report.settings.epsilon, color=INK, linestyle=":", linewidth=1.2)
        axes.set_title(drawable(label))
        axes.set_ylabel(f"alignment, {matrices[0].sides[0].side} vectors")
        axes.set_ylim(0, 1.03)
        axes.legend(loc="lower left", ncols=4, framealpha=0.85, frameon=True, edgecolor="none", fontsize=10)
    panels[-1].set_xlabel("vectors in the order of the model; ticks are layers")
    return figure


def _bounds(axes: Any, matrices: Sequence[MatrixReport]) -> None:
    places: dict[str, list[tuple[int, float, float]]] = {verdict: [] for verdict in VERDICTS}
    starts: list[tuple[int, int | None]] = []
    place = 0
    for matrix in matrices:
        if not starts or starts[-1][1] != matrix.layer:
            starts.append((place, matrix.layer))
        side = matrix.sides[0]
        for low, high, verdict in zip(side.alignment_lower, side.alignment_upper, side.verdicts, strict=True):
            places[verdict].append((place, low, high))
            place += 1
        place += 1
    size = max(1.5, min(5.0, 1500.0 / max(1, place)))
    for name, marks in places.items():
        if not marks:
            continue
        at, lower, upper = ([mark[i] for mark in marks] for i in range(3))
        colour = VERDICTS[name]
        width = size * (0.7 if name == "aligned" else 1.0)
        axes.vlines(at, lower, upper, color=colour, linewidth=width * 0.6)
        middle = [(low + high) / 2 for low, high in zip(lower, upper, strict=True)]
        label = f"{name} ({len(marks)})"
        axes.plot(at, middle, color=colour, marker="o", markersize=width, linestyle="none", label=label)
    every = max(1, math.ceil(len(starts) / 34))
    axes.set_xticks([at for at, _ in starts[::every]], [_layer_name(layer) for _, layer in starts[::every]])
    axes.margins(x=0.01)


def effective_rank_figure(reports: Reports) -> Any:
    """Effective rank of the update over the layers, a panel per kind; None if none is known."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    known = {
        kind: [effective_ranks(report, kind) for _, report in reports]
        for kind in kinds_in_order([report for _, report in reports])
    }
    known = {kind: lines for kind, lines in known.items() if any(lines)}
    values = [rank.value for lines in known.values() for line in lines for rank in line]
    if not values:
        return None
    kinds = list(known)
    columns = min(_PANELS_PER_ROW, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure = new_figure(3.1 * columns + 0.6, 2.5 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    wide = max(values) > _LOG_RATIO * min(values)
    for axes, kind in zip(panels, kinds, strict=False):
        for index, (line, (label, _)) in enumerate(zip(known[kind], reports, strict=True)):
            _ranks(axes, line, drawable(label), index)
        axes.set_title(drawable(kind, limit=16), fontsize=12)
        if wide:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(whole_numbers())
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    figure.supylabel("effective rank of the update (directions)", color=INK)
    figure.supxlabel("layer", color=INK)
    if len(reports) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def _ranks(axes: Any, ranks: Sequence[LayerRank], label: str, index: int) -> None:
    # Estimates lie inside their intervals but for rounding; matplotlib refuses a negative length.
    below = [max(0.0, rank.value - rank.low) for rank in ranks]
    above = [max(0.0, rank.high - rank.value) for rank in ranks]
    axes.errorbar(
        [rank.layer for rank in ranks],
        [rank.value for rank in ranks],
        yerr=[below, above],
        color=SERIES[index % len(SERIES)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=4.5,
        linewidth=1.2,
        label=label,
    )


def similarity_figure(label: str, report: ScanReport) -> Any:
    """|cosines| of base vectors (down) with tuned vectors (across), for the matrices with most intruders."""
    mapped = [
        (matrix, matrix.sides[0].similarity)
        for matrix in report.matrices
        if matrix.sides and matrix.sides[0].similarity is not None
    ]
    mapped.sort(key=lambda pair: -pair[0].sides[0].num_intruders)
    shown = mapped[:MAX_MAPS]
    if not shown:
        return None
    columns = min(_PANELS_PER_ROW, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(3.2 * columns + 1.2, 3.3 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    image = None
    for axes, (matrix, similarity) in zip(panels, shown, strict=False):
        assert similarity is not None
        image = draw_map(axes, similarity)
        axes.set_title(drawable(matrix.name, limit=34), fontsize=9)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    which = shown[0][0].sides[0].side
    some = "" if len(shown) == len(mapped) else f": the {len(shown)} of {len(mapped)} with most intruders"
    figure.suptitle(f"{drawable(label)}{some}", fontweight="bold", fontsize=13)
    figure.supxlabel(f"tuned {which} vectors, by descending singular value", color=INK)
    figure.supylabel(f"base {which} vectors", color=INK)
    map_bar(figure, image, panels)
    return figure


def draw_map(axes: Any, similarity: SimilarityMap) -> Any:
    """One similarity map, base vectors down and tuned ones across, counted from 1; the image, for its bar."""
    width, height = similarity.num_tuned, similarity.num_base
    levels = [
        [level / 255 for level in similarity.levels[row * width : (row + 1) * width]] for row in range(height)
    ]
    edges = (0.5, width + 0.5, height + 0.5, 0.5)
    axes.grid(visible=False)
    axes.set_xticks(sorted({1, width}))
    axes.set_yticks(sorted({1, height}))
    return axes.imshow(levels, cmap=colours(), vmin=0, vmax=1, interpolation="nearest", extent=edges)


def map_bar(figure: Any, image: Any, panels: Any) -> None:
    """The scale of similarity maps beside them."""
    cells_bar(figure, image, panels, "|cosine|")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of the given size in inches that lays itself out."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colours() -> Any:
    """The one scale from little to much; grey where there is nothing."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("intruscope", SEQUENTIAL).with_extremes(bad=MISSING)


def whole_numbers() -> Any:
    """Ticks of an axis of counts."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


def _percent(count: float, total: int) -> float:
    return 100.0 * count / total if total else 0.0


def _layer_order(layer: int | None) -> tuple[bool, int]:
    return layer is None, layer or 0


def _layer_name(layer: int | None) -> str:
    return "–" if layer is None else str(layer)
