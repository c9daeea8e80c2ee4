"""A picture of a watched run: the number of intruders, and how the largest change (the paper's Figure 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.plots.draw import whole_numbers
from intruscope.plots.style import INK, MARKERS, SERIES, SOFT, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LINES = 6
"""Number of intruders drawn one by one: those with the largest singular values when last seen."""


@dataclass
class _Line:
    """One singular vector over the run."""

    matrix: str
    is_intruder: bool = False
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    alignments: list[float] = field(default_factory=list)


def watch_figure(looks: Sequence[Any]) -> Any:
    """Number of intruders by step; rank, singular value and alignment of the largest ones by step.

    Args:
        looks: In order (``train.look_file.Look``).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    (count, rank), (value, alignment) = figure.subplots(2, 2)
    steps = [look.step for look in looks]
    _counts(count, looks, steps)
    for axes, title, label in (
        (rank, "Rank by singular value", "rank (1 is the largest)"),
        (value, "Singular value", "singular value"),
        (alignment, "Alignment with the base", "alignment (cosine)"),
    ):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    rank.invert_yaxis()
    rank.yaxis.set_major_locator(whole_numbers())
    alignment.set_ylim(0.0, 1.02)
    lines = _intruders(looks)
    for index, line in enumerate(lines):
        style = {
            "color": SERIES[index % len(SERIES)],
            "marker": MARKERS[index % len(MARKERS)],
            "linewidth": 2.0,
            "markersize": 4.5,
        }
        rank.plot(line.steps, line.ranks, **style, label=drawable(line.matrix, limit=44))
        value.plot(line.steps, line.values, **style)
        alignment.plot(line.steps, line.alignments, **style)
    if lines:
        handles, labels = rank.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9.5)
    else:
        for axes in (rank, value, alignment):
            axes.text(0.5, 0.5, "no intruders", transform=axes.transAxes, ha="center", color=SOFT)
    return figure


def _counts(axes: Any, looks: Sequence[Any], steps: list[int]) -> None:
    found = [sum(v.verdict == "intruder" for m in look.matrices for v in m.vectors) for look in looks]
    born = [sum(v.born for m in look.matrices for v in m.vectors) for look in looks]
    axes.plot(steps, found, color=SERIES[1], marker="o", linewidth=2.2, markersize=4.5, label="intruders")
    axes.plot(steps, born, color=INK, linestyle=":", linewidth=1.6, label="new since the last look")
    axes.set_title("Number of intruders")
    axes.set_xlabel("step")
    axes.set_ylabel("vectors")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    forgotten = [look.forgetting for look in looks]
    if any(each is not None for each in forgotten):
        other = axes.twinx()
        other.plot(steps, [float("nan") if f is None else f for f in forgotten], color=SERIES[0],
                   linewidth=1.8, label="forgetting")  # fmt: skip
        other.set_ylabel("forgetting (nats per token)", color=SERIES[0])
        other.grid(visible=False)


def _intruders(looks: Sequence[Any]) -> list[_Line]:
    """The vectors that are intruders at some look; those with the largest last singular value first."""
    lines: dict[tuple[str, int], _Line] = {}
    for look in looks:
        for matrix in look.matrices:
            for place, vector in enumerate(matrix.vectors, start=1):
                line = lines.setdefault((matrix.name, vector.track), _Line(matrix=matrix.name))
                line.is_intruder |= vector.verdict == "intruder"
                line.steps.append(look.step)
                line.values.append(vector.singular_value)
                line.ranks.append(place)
                line.alignments.append(0.5 * (vector.alignment_lower + vector.alignment_upper))
    found = [line for line in lines.values() if line.is_intruder]
    return sorted(found, key=lambda line: line.values[-1], reverse=True)[:MAX_LINES]
