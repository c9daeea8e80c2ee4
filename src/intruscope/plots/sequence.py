"""Pictures of a chain: accuracy matrix, accuracy of each task by stage, intruders and size of the update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.plots.draw import draw_map, map_bar, new_figure, whole_numbers
from intruscope.plots.style import GRID, INK, MARKERS, SERIES, SOFT, drawable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Three = tuple[float, float, float]
"""Estimate, low, high."""

_PANELS_PER_ROW = 3
_MAPS_PER_ROW = 4
_NAME = 14
_DIVERGING = (SERIES[1], "#f4f4f2", SERIES[0])
"""Below, at and above the base: orange and blue, which colour-blind people tell apart."""


@dataclass(frozen=True, kw_only=True)
class ChainLine:
    """One chain in a comparison, by stage.

    Attributes:
        label: Of the method.
        average: Mean accuracy over the tasks trained so far.
        kept: Mean over the earlier tasks of accuracy now less accuracy right after their own stage; from the
            second stage on.
        intruders: Against the original base.
    """

    label: str
    average: tuple[Three, ...]
    kept: tuple[Three, ...]
    intruders: tuple[int, ...]


def chain_figures(report: Any) -> Iterator[tuple[str, Any]]:
    """Every picture of one chain, by name.

    Args:
        report: ``sequence.records.ChainReport``.
    """
    yield "accuracy-matrix", matrix_figure(report)
    yield "tasks", tasks_figure(report)
    yield "weights", weights_figure(report)
    if report.map_matrix is not None:
        yield "similarity", similarity_figure(report)


def matrix_figure(report: Any) -> Any:
    """Accuracy of every task (across) after every stage (down); colours show the change from the base."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    names, num = [drawable(task, limit=_NAME) for task in report.tasks], len(report.tasks)
    values = [[report.cell(k, task).accuracy.estimate for task in report.tasks] for k in range(num + 1)]
    changes = [[100.0 * (value - base) for value, base in zip(row, values[0], strict=True)] for row in values]
    reach = max(5.0, max(abs(change) for row in changes for change in row))
    figure = new_figure(2.9 + 1.15 * num, 1.9 + 0.62 * (num + 1))
    axes = figure.subplots()
    image = axes.pcolormesh(
        range(num),
        range(num + 1),
        changes,
        cmap=LinearSegmentedColormap.from_list("change", _DIVERGING),
        vmin=-reach,
        vmax=reach,
        edgecolors="white",
        linewidth=2.0,
    )
    axes.invert_yaxis()
    for stage, row in enumerate(values):
        for place, value in enumerate(row):
            dark = abs(changes[stage][place]) > 0.6 * reach
            axes.text(
                place,
                stage,
                f"{100.0 * value:.1f}",
                ha="center",
                va="center",
                color="white" if dark else INK,
                fontweight="bold" if stage == place + 1 else "normal",
            )
            if stage == place + 1:
                corner = (place - 0.47, stage - 0.46)
                axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=INK, linewidth=1.8))
    axes.set_xticks(range(num), names)
    axes.xaxis.tick_top()
    axes.set_yticks(range(num + 1), ["base", *(f"after {name}" for name in names)])
    axes.set_title(f"Accuracy after each task (%): {drawable(report.method)}", pad=14)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
    bar.set_label("change from the base (points)")
    bar.outline.set_visible(False)
    figure.supxlabel("framed: the task just trained", color=SOFT, fontsize=9)
    return figure


def tasks_figure(report: Any) -> Any:
    """Accuracy of each task by stage with Wilson intervals, and the base's accuracy."""
    num = len(report.tasks)
    columns = min(_PANELS_PER_ROW, num)
    rows = math.ceil(num / columns)
    figure = new_figure(3.5 * columns + 0.5, 2.7 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    stages = range(num + 1)
    for place, (axes, task) in enumerate(zip(panels, report.tasks, strict=False)):
        found = [report.cell(stage, task).accuracy for stage in stages]
        axes.axhline(100.0 * found[0].estimate, color=SOFT, linestyle=":", linewidth=1.4)
        axes.axvspan(place + 0.7, place + 1.3, color=GRID, linewidth=0)
        _line(axes, stages, [_percent(each) for each in found], SERIES[0], "o")
        axes.set_title(drawable(task, limit=24))
        axes.set_xticks(stages, ["base", *map(str, range(1, num + 1))])
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes in panels[num:]:
        axes.set_visible(False)
    figure.supylabel("accuracy (%)", color=INK)
    figure.supxlabel("stage (shaded: trained on this task; dotted: untrained base)", color=INK)
    return figure


def weights_figure(report: Any) -> Any:
    """By stage, against the original base: intruders, size and effective rank of the update, forgetting."""
    stages = [stage.stage for stage in report.stages]
    figures = [stage.weights for stage in report.stages]
    forgotten = [stage.forgetting for stage in report.stages]
    has_text = all(each is not None for each in forgotten)
    figure = new_figure(3.4 * (4 if has_text else 3), 3.5)
    panels = figure.subplots(1, 4 if has_text else 3)
    panels[0].bar(stages, [each.num_intruders for each in figures], color=SERIES[1], width=0.62)
    panels[0].set_title("Intruders")
    panels[0].set_ylabel(f"out of {figures[-1].num_candidates} leading vectors")
    panels[0].set_ylim(0, max(4, *(1.12 * each.num_intruders for each in figures)))
    panels[0].yaxis.set_major_locator(whole_numbers())
    panels[1].plot(
        stages, [100.0 * e.relative_update_norm for e in figures], color=SERIES[0], marker="o", linewidth=2.2
    )
    panels[1].set_title("Size of the update")
    panels[1].set_ylabel("% of the base's norm")
    ranks = [math.nan if each.effective_rank is None else each.effective_rank for each in figures]
    panels[2].plot(stages, ranks, color=SERIES[2], marker="^", linewidth=2.2)
    panels[2].set_title("Effective rank")
    panels[2].set_ylabel("mean over matrices")
    if has_text:
        changes = [(e.change.estimate, e.change.low, e.change.high) for e in forgotten]
        _line(panels[3], stages, changes, SERIES[3], "s")
        panels[3].axhline(0.0, color=SOFT, linestyle=":", linewidth=1.4)
        panels[3].set_title("Forgetting")
        panels[3].set_ylabel("nats per token")
    for axes in panels[1:3]:
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
    for axes in panels:
        _name_stages(axes, stages, report.tasks)
    figure.supxlabel("after training on", color=INK)
    return figure


def similarity_figure(report: Any) -> Any:
    """|cosines| of the base's leading vectors (down) with those after each stage (across), one matrix."""
    shown = [stage for stage in report.stages if stage.similarity is not None]
    columns = min(_MAPS_PER_ROW, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(2.9 * columns + 1.0, 3.0 * rows + 1.0)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    image = None
    for axes, stage in zip(panels, shown, strict=False):
        image = draw_map(axes, stage.similarity)
        axes.set_title(f"{stage.stage}. {drawable(stage.task, limit=_NAME)}", fontsize=11)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(f"{drawable(report.map_matrix, limit=58)}", fontweight="bold", fontsize=13)
    figure.supxlabel("left singular vectors after the stage, in descending order", color=INK)
    figure.supylabel("left singular vectors of the base", color=INK)
    map_bar(figure, image, panels)
    return figure


def comparison_figure(tasks: Sequence[str], lines: Sequence[ChainLine]) -> Any:
    """Several methods on the same chain: mean accuracy, change on earlier tasks, and intruders.

    Args:
        tasks: In the order of training.
        lines: One per method, with a figure for every stage.
    """
    figure = new_figure(13.0, 4.1)
    average, kept, intruders = figure.subplots(1, 3)
    stages = list(range(1, len(tasks) + 1))
    for index, line in enumerate(lines):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        shift = 0.07 * (index - (len(lines) - 1) / 2)  # so that intervals do not hide each other
        shifted = [stage + shift for stage in stages]
        _line(
            average, shifted, [_hundred(each) for each in line.average], colour, marker, drawable(line.label)
        )
        _line(kept, shifted[1:], [_hundred(each) for each in line.kept], colour, marker)
        intruders.plot(stages, line.intruders, color=colour, marker=marker, linewidth=2.2, clip_on=False)
    kept.axhline(0.0, color=SOFT, linestyle=":", linewidth=1.4)
    for axes, title, label in (
        (average, "Tasks trained so far", "mean accuracy (%)"),
        (kept, "Change on earlier tasks", "accuracy now minus after their own stage (points)"),
        (intruders, "Intruders", "singular vectors"),
    ):
        axes.set_title(title)
        axes.set_ylabel(label)
        _name_stages(axes, stages, tasks)
    intruders.set_ylim(0, max(4.0, 1.12 * max(max(line.intruders) for line in lines)))
    intruders.yaxis.set_major_locator(whole_numbers())
    figure.legend(loc="outside lower center", ncols=len(lines))
    return figure


def _name_stages(axes: Any, stages: Sequence[int], tasks: Sequence[str]) -> None:
    axes.set_xticks(stages, [drawable(task, limit=_NAME) for task in tasks], rotation=35, ha="right")


def _line(
    axes: Any,
    at: Sequence[float],
    found: Sequence[Three],
    colour: str,
    marker: str,
    label: str = "_nolegend_",
) -> None:
    # Wilson's interval may begin at its estimate but for rounding; matplotlib refuses a negative length.
    below = [max(0.0, value - low) for value, low, _ in found]
    above = [max(0.0, high - value) for value, _, high in found]
    axes.errorbar(
        list(at),
        [value for value, _, _ in found],
        yerr=[below, above],
        color=colour,
        marker=marker,
        markersize=5.5,
        linewidth=2.0,
        elinewidth=1.0,
        capsize=2.5,
        label=label,
    )


def _percent(interval: Any) -> Three:
    return _hundred((interval.estimate, interval.low, interval.high))


def _hundred(three: Three) -> Three:
    value, low, high = three
    return 100.0 * value, 100.0 * low, 100.0 * high
