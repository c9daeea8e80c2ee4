"""The error of an extracted adapter against its size, as a picture for slides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.plots.style import INK, SERIES, SOFT, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

SizedError = tuple[int, float]
"""Parameters in the factors, and the relative error."""


def error_curve_figure(
    uniform: Sequence[tuple[int, int, float]],
    best: Sequence[SizedError],
    chosen: SizedError,
    *,
    title: str,
) -> Any:
    """Relative error against the number of parameters: one rank for all, and ranks of their own.

    Args:
        uniform: Rank, parameters in the factors, and error, by rising rank.
        best: The same with a rank of its own for each matrix.
        chosen: The adapter itself.
        title: Of the picture; may contain a name from a file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(
        [size for _, size, _ in uniform],
        [error for *_, error in uniform],
        color=SERIES[0],
        marker="o",
        linewidth=2.2,
        label="one rank for all matrices",
    )
    for rank, size, error in uniform:
        axes.annotate(
            f"r = {rank}",
            (size, error),
            xytext=(6, 8),
            textcoords="offset points",
            color=SERIES[0],
            fontsize=9.5,
        )
    if len(best) > 1:
        axes.plot(
            [size for size, _ in best],
            [error for _, error in best],
            color=SERIES[2],
            marker="s",
            markersize=5,
            linestyle="--",
            linewidth=1.8,
            label="a rank per matrix",
        )
    axes.plot(
        [chosen[0]],
        [chosen[1]],
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=SERIES[1],
        markeredgewidth=2.6,
        linestyle="none",
        label="this adapter",
        zorder=5,
    )
    axes.axhline(0, color=SOFT, linewidth=0.9)
    axes.set_ylim(-0.03, 1.05)
    axes.margins(x=0.09)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter("")
    axes.set_title(drawable(title), color=INK)
    axes.set_xlabel("parameters in the factors")
    axes.set_ylabel("relative error of the update (Frobenius)")
    axes.legend(loc="upper right")
    return figure
