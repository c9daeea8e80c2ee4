"""Pictures of the paper's kinds from a study's rows: counts over epsilon, a scatter, lives over training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from intruscope.plots.style import MARKERS, SERIES, SOFT, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = Mapping[str, Any]
_NAMES = {
    "full": "full",
    "lora_r1": "LoRA r 1",
    "lora_r8": "LoRA r 8",
    "lora_r16": "LoRA r 16",
    "lora_r64": "LoRA r 64",
    "lora_full_width": "LoRA full width",
}
"""The arms of the counts, in order, as the legends call them."""


def epsilon_figure(rows: Sequence[Row]) -> Any:
    """Share of candidates that intrude over epsilon, by arm (version 1 and 3, figure 4).

    Args:
        rows: Of the counts; means over all runs, with the range over them.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = figure.subplots()
    for place, (arm, name) in enumerate(_NAMES.items()):
        own = [row for row in rows if row["arm"] == arm and row["status"] == "ok"]
        if not own:
            continue
        epsilons = sorted(own[0]["counts"], key=float)
        shares = [[row["counts"][e] / row["candidates"] for row in own] for e in epsilons]
        x = [float(e) for e in epsilons]
        colour = SERIES[place % len(SERIES)]
        axes.plot(
            x,
            [100 * statistics.fmean(each) for each in shares],
            color=colour,
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            label=name,
        )
        axes.fill_between(
            x,
            [100 * min(each) for each in shares],
            [100 * max(each) for each in shares],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    axes.set_xlabel("epsilon")
    axes.set_ylabel("intruders among ten leading vectors, %")
    axes.set_ylim(bottom=0)
    axes.set_title("Intruders by threshold: mean and range over runs")
    axes.legend(loc="upper left")
    return figure


def scatter_figure(rows: Sequence[Row]) -> Any:
    """Forgetting over the count, a panel for each task, a mark for each run (version 3, figure 8).

    Args:
        rows: Of the correlations.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    fine = [row for row in rows if row["status"] == "ok"]
    tasks = list(dict.fromkeys(row["task"] for row in fine))
    figure = Figure(figsize=(4.3 * max(1, len(tasks)), 4.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(tasks)), squeeze=False)[0]
    kinds = {"full": "full, all rates", "alpha8": "LoRA, alpha 8", "lora": "LoRA, alpha 2r"}
    for axes, task in zip(panels, tasks, strict=True):
        for place, (kind, label) in enumerate(kinds.items()):
            own = [row for row in fine if row["task"] == task and row["arm"].startswith(kind)]
            axes.plot(
                [row["count"] for row in own],
                [row["forgetting"] for row in own],
                linestyle="none",
                marker=MARKERS[place],
                color=SERIES[place],
                alpha=0.75,
                markersize=6,
                label=label,
            )
        axes.set_title(drawable(task))
        axes.set_xlabel("intruders")
        axes.axhline(0, color=SOFT, linewidth=0.9)
    panels[0].set_ylabel("forgetting, nats per token")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def lives_figure(rows: Sequence[Row]) -> Any:
    """Intruders and forgetting while training goes on, by arm, seeds as thin lines (figure 5's course).

    Args:
        rows: Of the runs that were watched.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    fine = [row for row in rows if row["status"] == "ok" and row.get("looks")]
    tasks = list(dict.fromkeys(row["task"] for row in fine))
    figure = Figure(figsize=(4.3 * max(1, len(tasks)), 6.4), layout="constrained")
    panels = figure.subplots(2, max(1, len(tasks)), squeeze=False)
    for column, task in enumerate(tasks):
        for line, (what, title) in enumerate(
            (("count", "intruders"), ("forgetting", "forgetting, nats per token"))
        ):
            axes = panels[line][column]
            for place, (arm, name) in enumerate(_NAMES.items()):
                for turn, row in enumerate(r for r in fine if r["task"] == task and r["arm"] == arm):
                    points = [point for point in row["looks"] if point[what] is not None]
                    axes.plot(
                        [point["step"] for point in points],
                        [point[what] for point in points],
                        color=SERIES[place % len(SERIES)],
                        linewidth=1.4,
                        alpha=0.8,
                        label=name if turn == 0 else None,
                    )
            if line == 0:
                axes.set_title(drawable(task))
            else:
                axes.set_xlabel("step")
            if column == 0:
                axes.set_ylabel(title)
    handles, labels = panels[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure
