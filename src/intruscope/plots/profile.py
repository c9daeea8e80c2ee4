"""A picture of the cost of a training step by method: time by phase, and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.plots.style import INK, SERIES, SOFT, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARTS = (("forward", SERIES[0]), ("backward", SERIES[1]), ("optimiser", SERIES[2]))
_MEMORY = "#8796a5"
_ROW, _HEAD = 0.46, 1.3


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One setting.

    Attributes:
        label: May hold a foreign name.
        phases: Seconds of forward, backward and optimiser.
        step: Interval of the whole step's seconds.
        ratio: The step over the reference's, in words; None for the reference.
        tensors: Bytes that tensors took at most.
        resident: Bytes that the process took at most.
    """

    label: str
    phases: tuple[float, ...]
    step: tuple[float, float]
    ratio: str | None
    tensors: int
    resident: int


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All settings at one batch and length."""

    title: str
    bars: tuple[Bar, ...]


def profile_figure(panels: Sequence[Panel], *, title: str) -> Any:
    """A row of two charts per panel: stacked times with intervals, and memory; None without panels.

    Args:
        panels: Batches and lengths.
        title: Of the picture; may be a foreign name.
    """
    from matplotlib.figure import Figure

    if not panels:
        return None
    heights = [len(panel.bars) * _ROW + _HEAD for panel in panels]
    figure = Figure(figsize=(12.0, sum(heights) + 0.9), layout="constrained")
    rows = figure.subplots(
        len(panels), 2, squeeze=False, width_ratios=(2.4, 1.0), height_ratios=heights, sharey="row"
    )
    for (times, memory), panel in zip(rows, panels, strict=True):
        _times(times, panel)
        _memory(memory, panel)
    both = [axes.get_legend_handles_labels() for axes in rows[0]]
    handles, labels = ([each for pair in both for each in pair[place]] for place in (0, 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    figure.suptitle(f"Cost of a training step: {drawable(title)}", fontweight="bold", fontsize=13)
    return figure


def _times(axes: Any, panel: Panel) -> None:
    places = range(len(panel.bars))
    scale, unit = (1.0, "seconds") if max(bar.step[1] for bar in panel.bars) >= 2.0 else (1e3, "milliseconds")
    begun = [0.0] * len(panel.bars)
    for part, (name, colour) in enumerate(_PARTS):
        lengths = [scale * bar.phases[part] for bar in panel.bars]
        axes.barh(places, lengths, left=begun, color=colour, height=0.66, label=name)
        begun = [before + length for before, length in zip(begun, lengths, strict=True)]
    # The median of a sum is not the sum of medians: the whisker may lie beside the end of its bar.
    low, high = ([scale * bar.step[end] for bar in panel.bars] for end in (0, 1))
    middle = [(below + above) / 2 for below, above in zip(low, high, strict=True)]
    reach = [(above - below) / 2 for below, above in zip(low, high, strict=True)]
    axes.errorbar(
        middle,
        places,
        xerr=reach,
        fmt="none",
        ecolor=INK,
        elinewidth=1.6,
        capsize=4,
        label="step, 95% interval",
    )
    room = max(high)
    for place, bar in enumerate(panel.bars):
        said = "reference" if bar.ratio is None else bar.ratio
        axes.text(
            max(high[place], begun[place]) + 0.015 * room, place, said, va="center", color=INK, fontsize=9.5
        )
    axes.set_xlim(0, 1.3 * room)
    axes.set_yticks(places, [drawable(bar.label, limit=40) for bar in panel.bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_title(f"{panel.title}: time of a step, and its ratio to the reference")
    axes.set_xlabel(unit)


def _memory(axes: Any, panel: Panel) -> None:
    most = max(max(bar.tensors, bar.resident) for bar in panel.bars)
    scale, unit = (2.0**30, "GiB") if most >= 2**30 else (2.0**20, "MiB")
    places = range(len(panel.bars))
    sizes = [bar.tensors / scale for bar in panel.bars]
    held = [bar.resident / scale for bar in panel.bars]
    axes.barh(places, sizes, height=0.66, color=_MEMORY, label="tensors")
    axes.barh(places, held, height=0.66, fill=False, edgecolor=SOFT, linewidth=1.1, label="resident")
    for place, (size, all_held) in enumerate(zip(sizes, held, strict=True)):
        at = max(size, all_held) + 0.015 * most / scale
        axes.text(at, place, f"{size:.3g} in {all_held:.3g}", va="center", color=SOFT, fontsize=9.5)
    axes.set_xlim(0, 1.4 * most / scale or 1.0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title("Memory")
    axes.set_xlabel(unit)
