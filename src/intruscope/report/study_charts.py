"""Pictures of a study as plain data for the page's own script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.plots.study_picture import MapPanel
from intruscope.report.words import printable_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.plots.study_picture import Axis, Line, Panel, Picture, Point

_DIGITS = 6
"""Significant ones; more than a screen shows."""


def pictures_data(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """What ``study_charts.js`` draws; every foreign name is escaped here.

    Args:
        pictures: With finite figures.
    """
    return [
        {
            "name": picture.name,
            "columns": picture.columns,
            "panels": [
                _map(panel) if isinstance(panel, MapPanel) else _panel(panel) for panel in picture.panels
            ],
        }
        for picture in pictures
    ]


def _map(panel: MapPanel) -> dict[str, Any]:
    return {
        "title": printable_text(panel.title),
        "rows": panel.num_base,
        "columns": panel.num_tuned,
        "hundredths": list(panel.hundredths),
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "title": printable_text(panel.title),
        "x": _axis(panel.x),
        "y": _axis(panel.y),
        "zero": panel.has_zero,
        "threshold": panel.threshold,
        "lines": [_line(line) for line in panel.lines],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": printable_text(axis.title),
        "ticks": [[value, printable_text(text)] for value, text in axis.ticks],
        "log": axis.is_log,
        "zero": axis.from_zero,
        "top": axis.to,
    }


def _line(line: Line) -> dict[str, Any]:
    look = line.look
    return {
        "name": printable_text(line.name),
        "look": [look.colour, look.mark, look.dash, look.is_hollow],
        "kind": line.kind,
        "shift": line.shift,
        "points": [_point(point) for point in line.points],
    }


def _point(point: Point) -> list[float | str | None]:
    tooltip = "\n".join(printable_text(part) for part in point.tooltip.split("\n"))
    return [_short(point.x), _short(point.y), _short(point.low), _short(point.high), tooltip]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
