"""Pictures of a study as matplotlib figures. Called inside :func:`intruscope.plots.style.picture_style`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.plots.draw import draw_map
from intruscope.plots.study_layout import is_across, is_rotated, layout
from intruscope.plots.study_picture import MapPanel
from intruscope.plots.style import MARKERS, SERIES, SOFT, drawable
from intruscope.spectra.records import SimilarityMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.plots.study_layout import Box, Layout
    from intruscope.plots.study_picture import Axis, Line, LineStyle, Panel, Picture

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 2.5),
    (1.6, 1.8),
    (7, 2, 1.6, 2),
    (3, 1.5),
    (8, 2, 1.6, 2, 1.6, 2),
)
"""On and off in widths of the line; the page draws the same."""


def picture_figure(picture: Picture) -> Any:
    """A figure of all panels with one legend below them.

    Args:
        picture: What is drawn.
    """
    from matplotlib.figure import Figure

    names = legend_names(picture)
    place = layout(picture, names)
    figure = Figure(figsize=(place.width, place.height))
    panels: Sequence[Panel | MapPanel] = picture.panels
    columns = min(picture.columns, len(panels))
    image = None
    for number, (box, panel) in enumerate(zip(place.boxes, panels, strict=True)):
        axes = figure.add_axes(_share(box, place))
        axes.tick_params(labelsize=9.5)
        if isinstance(panel, MapPanel):
            axes.set_title(drawable(panel.title, limit=34), fontsize=11, pad=6)
            image = draw_map(axes, _similarity(panel))
        else:
            _draw(axes, panel, is_first=number % columns == 0)
    if image is not None and place.bar is not None:
        bar = figure.colorbar(image, cax=figure.add_axes(_share(place.bar, place)))
        bar.set_label("|cosine|")
        bar.outline.set_visible(False)
        figure.text(
            0.5, 0.1 / place.height, "tuned vectors, in descending order of singular value", ha="center"
        )
        figure.text(0.1 / place.width, 0.5, "base vectors", va="center", rotation=90)
    _legend(figure, names, place.legend_columns)
    return figure


def _share(box: Box, place: Layout) -> Box:
    left, bottom, width, height = box
    return left / place.width, bottom / place.height, width / place.width, height / place.height


def _similarity(panel: MapPanel) -> SimilarityMap:
    levels = tuple(round(2.55 * level) for level in panel.hundredths)
    return SimilarityMap(num_base=panel.num_base, num_tuned=panel.num_tuned, levels=levels)


def _draw(axes: Any, panel: Panel, *, is_first: bool) -> None:
    _axis(axes.xaxis, panel.x)
    _axis(axes.yaxis, panel.y)
    axes.set_xlabel(panel.x.title, fontsize=9.5)
    # The title of the axis up stands level above it, where a long one has room.
    axes.set_title(drawable(panel.title, limit=34), fontsize=11, pad=20 if panel.y.title else 8)
    axes.text(0, 1.03, panel.y.title, transform=axes.transAxes, fontsize=9.5)
    if panel.has_zero:
        axes.axhline(0, color=SOFT, linewidth=0.9, zorder=1)
    if panel.threshold is not None:
        axes.axhline(panel.threshold, color=SOFT, linestyle=":", linewidth=1.2, zorder=1)
    for line in drawing_order(panel):
        _DRAW[line.kind](axes, line, _moved(panel, line))
    if is_across(panel):
        axes.set_ylim(min(tick for tick, _ in panel.y.ticks) - 0.6, 0.6)
        axes.tick_params(axis="y", length=0, labelleft=is_first)
    if panel.y.from_zero:
        axes.set_ylim(bottom=0, top=panel.y.to)
    if panel.x.from_zero:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def drawing_order(panel: Panel) -> list[Line]:
    """The first line on top, and what chance makes above all."""
    lines = list(panel.lines)
    lines.reverse()
    return sorted(lines, key=lambda line: line.look.colour is None)


def _axis(axis: Any, wanted: Axis) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    if wanted.is_log:
        axis.axes.set_xscale("log")
        axis.set_minor_locator(NullLocator())
    if wanted.ticks:
        axis.set_major_locator(FixedLocator([value for value, _ in wanted.ticks]))
        axis.set_ticklabels([drawable(text, limit=24) for _, text in wanted.ticks])
        if axis.axis_name == "x" and is_rotated(wanted):
            axis.set_tick_params(labelrotation=30)


def _moved(panel: Panel, line: Line) -> list[float]:
    """Places across, shifted in shares of the panel's width."""
    if not line.shift or panel.x.is_log:
        return [point.x for point in line.points]
    all_x = [point.x for each in panel.lines for point in each.points]
    width = max(all_x) - min(all_x)
    return [point.x + line.shift * width for point in line.points]


def _style(look: LineStyle) -> dict[str, Any]:
    colour = SOFT if look.colour is None else SERIES[look.colour % len(SERIES)]
    return {
        "color": colour,
        "marker": None if look.mark is None else MARKERS[look.mark % len(MARKERS)],
        "markerfacecolor": _inside(look, colour),
        "markeredgecolor": colour,
    }


def _inside(look: LineStyle, colour: str) -> str:
    """What chance makes stands above all else, and lets it be seen."""
    return "none" if look.colour is None else "white" if look.is_hollow else colour


def _stroke(look: LineStyle) -> Any:
    dash = DASHES[look.dash % len(DASHES)]
    return (0, dash) if dash else "-"


def _ends(line: Line) -> tuple[list[float], list[float]]:
    low = [point.y if point.low is None else point.low for point in line.points]
    return low, [point.y if point.high is None else point.high for point in line.points]


def _mean(axes: Any, line: Line, x: list[float]) -> None:
    y = [point.y for point in line.points]
    low, high = _ends(line)
    style = _style(line.look)
    axes.vlines(x, low, high, color=style["color"], linewidth=1.1, alpha=0.7)
    axes.plot(x, y, linestyle=_stroke(line.look), linewidth=1.5, markersize=5, label=line.name, **style)


def _band(axes: Any, line: Line, x: list[float]) -> None:
    low, high = _ends(line)
    style = _style(line.look)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    y = [point.y for point in line.points]
    axes.plot(x, y, linestyle=_stroke(line.look), linewidth=1.6, markersize=5, label=line.name, **style)


def _course(axes: Any, line: Line, x: list[float]) -> None:
    y = [point.y for point in line.points]
    axes.plot(
        x,
        y,
        linestyle=_stroke(line.look),
        linewidth=1.1,
        markersize=4.5,
        markevery=[len(x) - 1],
        label=line.name,
        **_style(line.look),
    )


def _marks(axes: Any, line: Line, x: list[float]) -> None:
    y = [point.y for point in line.points]
    axes.plot(x, y, linestyle="none", markersize=5.5, alpha=0.85, label=line.name, **_style(line.look))


def _across(axes: Any, line: Line, x: list[float]) -> None:
    style = _style(line.look)
    for point in line.points:
        if point.low is not None and point.high is not None:
            axes.hlines(point.y, point.low, point.high, color=style["color"], linewidth=2.0, alpha=0.7)
    axes.plot(
        x, [point.y for point in line.points], linestyle="none", markersize=6, label="_nolegend_", **style
    )


_DRAW = {"mean": _mean, "band": _band, "course": _course, "marks": _marks, "across": _across}


def _legend(figure: Any, names: Sequence[str], columns: int) -> None:
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if names:
        handles = [found[name] for name in names]
        figure.legend(handles, names, loc="lower center", ncols=min(columns, len(names)), fontsize=9.5)


def legend_names(picture: Picture) -> list[str]:
    """Names in a picture's legend, in the order in which its lines first appear.

    Rows that have their names beside them are not in it. A single name says nothing, unless of chance.
    """
    lines = [
        line
        for panel in picture.panels
        if not isinstance(panel, MapPanel)
        for line in panel.lines
        if line.kind != "across"
    ]
    names = list(dict.fromkeys(line.name for line in lines))
    return names if len(names) > 1 or any(line.look.colour is None for line in lines) else []
