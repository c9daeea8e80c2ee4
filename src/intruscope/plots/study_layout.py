"""Where the panels of a study's picture stand on paper, in inches.

Reckoned from the words that are there: matplotlib's own layout draws everything twice over to measure it, and
a study has two hundred panels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from intruscope.plots.study_picture import MapPanel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.plots.study_picture import Axis, Panel, Picture

Box = tuple[float, float, float, float]
"""Left, bottom, width, height."""

_COLUMN, _ACROSS_COLUMN, _PLOT_HEIGHT, _ARM_HEIGHT = 3.05, 2.2, 1.6, 0.27
_LEFT, _RIGHT, _TITLE, _SECOND_TITLE, _TICKS, _ROTATED, _X_TITLE = 0.62, 0.14, 0.34, 0.2, 0.26, 0.3, 0.24
_MAP, _MAP_GAP, _BAR = 2.5, 0.45, 0.95
_CHARACTER = 0.083
"""Mean width of a character of a legend or a tick."""
_LEGEND_ROW, _HANDLE = 0.235, 0.65
_SMALLEST = 6.2
MOST_CHARACTERS = 40
"""Of ticks that stand level below a panel."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of a picture.

    Attributes:
        width, height: Of the paper.
        boxes: Of the axes, in the order of the panels.
        bar: Of the colour bar; None without maps.
        legend_columns: Names in a row of the legend.
    """

    width: float
    height: float
    boxes: tuple[Box, ...]
    bar: Box | None
    legend_columns: int


def is_across(panel: Panel | MapPanel) -> bool:
    """Whether a panel has named rows."""
    return not isinstance(panel, MapPanel) and any(line.kind == "across" for line in panel.lines)


def is_rotated(axis: Axis) -> bool:
    """Whether the ticks of an axis across have no room side by side."""
    return sum(len(text) + 1 for _, text in axis.ticks) > MOST_CHARACTERS


def layout(picture: Picture, names: Sequence[str]) -> Layout:
    """Boxes for all panels, with room for a legend below them.

    Args:
        picture: What is drawn.
        names: In the legend.
    """
    panels: Sequence[Panel | MapPanel] = picture.panels
    columns = min(picture.columns, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    is_map = isinstance(panels[0], MapPanel)
    lefts, plot_width, width = _across(rows, columns, is_map=is_map)
    in_row = _legend_columns(names, width)
    legend = _LEGEND_ROW * math.ceil(len(names) / in_row) + 0.12 if names else 0.05
    bands = [_band(row) for row in rows]
    height = sum(sum(band) for band in bands) + legend + (0.3 if is_map else 0.0)
    boxes: list[Box] = []
    top = height
    for row, (above, plot, below) in zip(rows, bands, strict=True):
        bottom = top - above - plot
        boxes += [(lefts[place], bottom, plot_width, plot) for place in range(len(row))]
        top = bottom - below
    bar = (width - _BAR + 0.15, boxes[-1][1], 0.18, height - _TITLE - boxes[-1][1]) if is_map else None
    return Layout(width=width, height=height, boxes=tuple(boxes), bar=bar, legend_columns=in_row)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """The most that fit.

    Matplotlib fills a legend column by column, the first ones with one name more where they do not come out
    even; each is as wide as its longest name.
    """
    for columns in range(len(names), 1, -1):
        each = np.array_split(np.asarray([len(name) for name in names]), columns)
        if sum(_CHARACTER * int(column.max()) + _HANDLE for column in each) <= width:
            return columns
    return 1


def _across(
    rows: Sequence[Sequence[Panel | MapPanel]], columns: int, *, is_map: bool
) -> tuple[list[float], float, float]:
    """Left edges of the columns, the width of a panel's axes, and the width of the whole."""
    if is_map:
        step = _MAP + _MAP_GAP
        return [0.75 + step * place for place in range(columns)], _MAP, 0.75 + step * columns + _BAR
    named = [panel for row in rows for panel in row if is_across(panel)]
    if named:
        longest = max(len(text) for panel in named for _, text in panel.y.ticks)  # type: ignore[union-attr]
        first = 0.25 + _CHARACTER * longest
        step = _ACROSS_COLUMN + 0.2
        width = max(_SMALLEST, first + step * columns)
        step = (width - first) / columns
        return [first + step * place for place in range(columns)], step - 0.25, width
    step = max(_COLUMN, _SMALLEST / columns)
    return [_LEFT + step * place for place in range(columns)], step - _LEFT - _RIGHT, step * columns


def _band(row: Sequence[Panel | MapPanel]) -> tuple[float, float, float]:
    """Room above, of and below the axes of one row."""
    plain = [panel for panel in row if not isinstance(panel, MapPanel)]
    if not plain:
        return _TITLE, _MAP, 0.3
    above = _TITLE + (_SECOND_TITLE if any(panel.y.title for panel in plain) else 0.0)
    below = _TICKS + _X_TITLE + (_ROTATED if any(is_rotated(panel.x) for panel in plain) else 0.0) + 0.06
    arms = max((len(panel.y.ticks) for panel in plain if is_across(panel)), default=0)
    return above, _ARM_HEIGHT * arms + 0.1 if arms else _PLOT_HEIGHT, below
