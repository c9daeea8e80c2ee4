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
    """Share of candidates that intrude over epsilon, by arm, a panel for each base (figure 4).

    Args:
        rows: Of the counts; means over all tasks and seeds, with the range over them.

    Returns:
        A matplotlib figure.
    """
    bases = list(dict.fromkeys(row["settings"]["base"] for row in rows))
    figure, panels = _panels(len(bases), 1, 4.6)
    for axes, base in zip(panels[0], bases, strict=False):
        for place, (arm, name) in enumerate(_NAMES.items()):
            own = [
                row
                for row in rows
                if row["settings"]["base"] == base and row["arm"] == arm and row["status"] == "ok"
            ]
            if own:
                _draw_shares(axes, own, place, name)
        axes.set_title(drawable(base))
        axes.set_xlabel("epsilon")
        axes.set_ylim(bottom=0)
    panels[0][0].set_ylabel("intruders among ten leading vectors, %")
    _legend(figure, panels[0])
    return figure


def _draw_shares(axes: Any, own: Sequence[Row], place: int, name: str) -> None:
    epsilons = sorted(own[0]["counts"], key=float)
    shares = [[100 * row["counts"][e] / row["candidates"] for row in own] for e in epsilons]
    x = [float(e) for e in epsilons]
    colour = SERIES[place % len(SERIES)]
    marker = MARKERS[place % len(MARKERS)]
    means = [statistics.fmean(each) for each in shares]
    axes.plot(x, means, color=colour, marker=marker, markersize=5, label=name)
    low, high = [min(each) for each in shares], [max(each) for each in shares]
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _panels(columns: int, lines: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    columns = max(1, columns)
    figure = Figure(figsize=(max(6.4, 4.3 * columns), height), layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False)


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One for all panels, below them; as many columns as the width has room for."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        columns = min(len(found), max(3, int(2.2 * len(panels))))
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)


def scatter_figure(rows: Sequence[Row]) -> Any:
    """Forgetting over the count, a panel for each task, a mark for each run (version 3, figure 8).

    Args:
        rows: Of the correlations.

    Returns:
        A matplotlib figure.
    """
    fine = [row for row in rows if row["status"] == "ok"]
    tasks = list(dict.fromkeys(row["task"] for row in fine))
    figure, (panels,) = _panels(len(tasks), 1, 4.6)
    kinds = {"full": "full, all rates", "alpha8": "LoRA, alpha 8", "lora": "LoRA, alpha 2r"}
    for axes, task in zip(panels, tasks, strict=False):
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
    _legend(figure, panels)
    return figure


def lives_figure(rows: Sequence[Row]) -> Any:
    """Intruders and forgetting while training goes on, by arm, seeds as thin lines (figure 5's course).

    Args:
        rows: Of the runs that were watched.

    Returns:
        A matplotlib figure.
    """
    fine = [row for row in rows if row["status"] == "ok" and row.get("looks")]
    tasks = list(dict.fromkeys(row["task"] for row in fine))
    figure, panels = _panels(len(tasks), 2, 6.6)
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
    _legend(figure, panels[0])
    return figure
