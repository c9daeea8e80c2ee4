"""Shares of parts as maps of layers and kinds, and as bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.plots.draw import colours, new_figure
from intruscope.plots.style import INK, SERIES, SOFT, drawable
from intruscope.spectra.kinds import in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_NUMBERED_LAYERS = 30
_RATIO_RANGE = 4.0
"""Ratios beyond this factor from 1 have the same colour."""


@dataclass(frozen=True, kw_only=True)
class ShareMap:
    """One panel of a map.

    Attributes:
        title: What is shown.
        cells: Value by kind and layer.
        is_ratio: Values are ratios, shown on a logarithmic scale around 1.
    """

    title: str
    cells: Mapping[tuple[str, int | None], float]
    is_ratio: bool = False


@dataclass(frozen=True, kw_only=True)
class ShareBar:
    """One bar, with its interval where it has one."""

    part: str
    series: str
    value: float
    low: float | None = None
    high: float | None = None


def maps_figure(maps: Sequence[ShareMap]) -> Any:
    """Layers across, kinds down, one panel below the other."""
    from matplotlib.colors import LogNorm, Normalize

    layers = sorted(
        {layer for each in maps for _, layer in each.cells}, key=lambda each: (each is None, each or 0)
    )
    kinds = in_order(kind for each in maps for kind, _ in each.cells)
    width = min(22.0, 3.2 + max(6.0, 0.5 * len(layers)))
    figure = new_figure(width, (1.2 + 0.36 * len(kinds)) * len(maps) + 0.4)
    panels = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for axes, each in zip(panels, maps, strict=True):
        grid = [[each.cells.get((kind, layer), math.nan) for layer in layers] for kind in kinds]
        top = max((abs(value) for value in each.cells.values()), default=1.0) or 1.0
        norm = LogNorm(1 / _RATIO_RANGE, _RATIO_RANGE, clip=True) if each.is_ratio else Normalize(0.0, top)
        # A share below zero is as dark as its size; a ratio below zero as light as the smallest.
        shades = [[max(value, 1e-9) if each.is_ratio else abs(value) for value in row] for row in grid]
        image = axes.pcolormesh(
            range(len(layers)),
            range(len(kinds)),
            shades,
            cmap=colours(),
            norm=norm,
            edgecolors="white",
            linewidth=1.5,
        )
        axes.invert_yaxis()
        axes.set_title(each.title)
        axes.set_yticks(range(len(kinds)), [drawable(kind, limit=16) for kind in kinds])
        every = max(1, math.ceil(len(layers) / 40))
        names = ["–" if layer is None else str(layer) for layer in layers]
        axes.set_xticks(range(0, len(layers), every), names[::every])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if len(layers) <= _MAX_NUMBERED_LAYERS:
            _write_values(axes, grid, norm, is_ratio=each.is_ratio)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015)
        bar.outline.set_visible(False)
        if each.is_ratio:
            bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["¼", "½", "1", "2", "4"])
            bar.ax.minorticks_off()
    panels[-1].set_xlabel("layer")
    return figure


def _write_values(axes: Any, grid: list[list[float]], norm: Any, *, is_ratio: bool) -> None:
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if math.isnan(value):
                continue
            shade = float(norm(max(value, 1e-9) if is_ratio else abs(value)))
            text = f"{value:.2f}" if is_ratio else f"{value:.1f}"
            colour = "white" if shade > 0.55 else INK
            axes.text(column, row, text.replace("-", "−"), ha="center", va="center", color=colour, fontsize=9)


def bars_figure(bars: Sequence[ShareBar], *, title: str) -> Any:
    """Bars of every series for every part, from the top down."""
    parts = list(dict.fromkeys(bar.part for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    figure = new_figure(8.6, 1.4 + 0.26 * len(parts) * (len(series) + 1))
    axes = figure.subplots()
    height = 0.8 / len(series)
    # The same colours as on the page.
    palette = dict(zip(series, (SERIES[5], SERIES[1], SERIES[0]), strict=False))
    for name in series:
        own = [bar for bar in bars if bar.series == name]
        places = [
            parts.index(bar.part) + height * (series.index(name) - (len(series) - 1) / 2) for bar in own
        ]
        axes.barh(
            places,
            [100 * bar.value for bar in own],
            height * 0.88,
            color=palette[name],
            label=f"share of {name}",
        )
        for bar, place in zip(own, places, strict=True):
            if bar.low is not None and bar.high is not None and bar.high > bar.low:
                axes.plot([100 * bar.low, 100 * bar.high], [place, place], color=INK, linewidth=1.4)
    axes.axvline(0.0, color=SOFT, linewidth=1.0)
    axes.set_yticks(range(len(parts)), parts)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of the whole update (%)")
    axes.set_title(drawable(title))
    axes.legend(loc="best")
    return figure
