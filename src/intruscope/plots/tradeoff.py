"""The trade-off between task and forgetting as a picture: an edit beside its controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.plots.style import INK, MARKERS, SERIES, SOFT, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

Three = tuple[float, float, float]
"""Estimate, low, high; more is better."""

# As on the page: the edit in the warm colour, then blue, green, grey, purple, ochre; after that, dashed.
_ORDER = (1, 0, 2, 5, 3, 4)


@dataclass(frozen=True, kw_only=True)
class TradePoint:
    """One setting: what the task gains (or, below zero, loses), and the forgetting that is won back."""

    setting: float
    task: Three
    forgetting: Three


@dataclass(frozen=True, kw_only=True)
class TradeSeries:
    """One edit or control at all its strengths; or a fit at all its weights.

    Attributes:
        label: In the legend.
        is_edit: It is the intruder edit.
        points: In any order.
        is_fit: The settings are weights of a fit, and the tuned model is no point of its line.
    """

    label: str
    is_edit: bool
    points: tuple[TradePoint, ...]
    is_fit: bool = False


def tradeoff_figure(
    series: Sequence[TradeSeries], *, title: str, task_title: str, forgetting_title: str
) -> Any:
    """One line per series, from the tuned model (the origin) outwards, with intervals in both directions.

    Args:
        series: Their order decides colours and marks.
        title: Title of the picture; may be a name from a file.
        task_title: Title of the horizontal axis.
        forgetting_title: Title of the vertical axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=SOFT, linewidth=0.9, zorder=1)
    axes.axvline(0, color=SOFT, linewidth=0.9, zorder=1)
    # The edit is drawn last, on top of its controls; the legend keeps the order of the list.
    for index, each in sorted(enumerate(series), key=lambda pair: pair[1].is_edit):
        _draw(axes, index, each)
    axes.plot([0], [0], marker="o", markersize=8, color="white", markeredgecolor=INK, markeredgewidth=1.8)
    axes.annotate("tuned model", (0, 0), xytext=(-8, -14), textcoords="offset points", ha="right", color=INK)
    _limits(axes, series)
    axes.set_title(drawable(title))
    axes.set_xlabel(f"{task_title} →")
    axes.set_ylabel(f"{forgetting_title} →")
    handles, labels = axes.get_legend_handles_labels()
    order = [labels.index(each.label) for each in series if each.points]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=3,
        fontsize=9.5,
    )
    return figure


def _draw(axes: Any, index: int, series: TradeSeries) -> None:
    if not series.points:
        return
    turn = index // len(_ORDER)
    colour = SERIES[_ORDER[(index + turn) % len(_ORDER)]]
    # The origin is a point of every intervention's line: strength 1 is the tuned model itself.
    origin = [] if series.is_fit else [(1.0, 0.0, 0.0)]
    path = sorted([(point.setting, point.task[0], point.forgetting[0]) for point in series.points] + origin)
    axes.plot(
        [x for _, x, _ in path],
        [y for *_, y in path],
        color=colour,
        linewidth=2.6 if series.is_edit else 1.6,
        linestyle="--" if turn else "-",
    )
    x, y = ([getattr(point, name)[0] for point in series.points] for name in ("task", "forgetting"))
    axes.errorbar(
        x,
        y,
        xerr=_reach([point.task for point in series.points]),
        yerr=_reach([point.forgetting for point in series.points]),
        color=colour,
        marker=MARKERS[(index + 3 * turn) % len(MARKERS)],
        markersize=7 if series.is_edit else 5.5,
        linestyle="none",
        elinewidth=1.0,
        label=series.label,
    )
    if series.is_edit:
        for point, px, py in zip(series.points, x, y, strict=True):
            axes.annotate(
                f"{point.setting:g}",
                (px, py),
                xytext=(7, 6),
                textcoords="offset points",
                color=colour,
                fontweight="bold",
            )


def _reach(values: Sequence[Three]) -> list[list[float]]:
    # An adjusted interval may not contain its estimate; it then has no reach on that side.
    return [
        [max(0.0, value - low) for value, low, _ in values],
        [max(0.0, high - value) for value, _, high in values],
    ]


def _limits(axes: Any, series: Sequence[TradeSeries]) -> None:
    """Set by the estimates, so that one wide interval does not squeeze everything else."""
    for name, setter in (("task", axes.set_xlim), ("forgetting", axes.set_ylim)):
        values = [getattr(point, name)[0] for each in series for point in each.points] + [0.0]
        low, high = min(values), max(values)
        room = 0.09 * (high - low or 1.0)
        setter(low - room, high + room)
