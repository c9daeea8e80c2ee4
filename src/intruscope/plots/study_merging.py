"""Merges of several adapters, as pictures: what each keeps, new intruders, and what predicts forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.plots.study_arms import BY_CHANCE
from intruscope.plots.study_picture import (
    Axis,
    Line,
    LineStyle,
    Panel,
    Point,
    across_point,
    number,
    picture_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.plots.study_picture import Picture

_SET_LOOKS = tuple(LineStyle(place, place) for place in range(6))
_CONTROL = LineStyle(1, 1, is_hollow=True)
_SUM_LOOKS = {2: LineStyle(0, 0), 3: LineStyle(1, 1)}
FIGURES = {
    "norm": "norm of the sum",
    "inflation": "inflation",
    "merged_only": "merged-only intruders",
    "cosine": "mean cosine of its pairs",
    "sign_conflict": "mean sign conflict of its pairs",
    "forgetting_of_parts": "forgetting of the parts, nats",
}
"""What the forgetting of a sum is drawn against, with the titles of the axes."""


@dataclass(frozen=True, kw_only=True)
class MergedSet:
    """What pictures show of one set of adapters.

    Attributes:
        base: Name of the base.
        seed: Of the set.
        kept: By number of adapters and title of the method: the share of what the adapters can do that is
            kept, in percent, and whether the method is a control.
        new: By what is summed: merged-only intruders, and those of the same sum in random directions.
        sums: The sums of two and of three adapters: ``tasks``, ``forgetting``, and :data:`FIGURES`.
    """

    base: str
    seed: int
    kept: Mapping[int, Mapping[str, tuple[float, bool]]]
    new: Mapping[str, tuple[float, float]]
    sums: Sequence[Mapping[str, Any]]


def merging_pictures(sets: Sequence[MergedSet]) -> list[Picture]:
    """Every picture of merges.

    Args:
        sets: Those whose adapters have seeds of their own.
    """
    bases = list(dict.fromkeys(each.base for each in sets))
    by_base = {base: [each for each in sets if each.base == base] for base in bases}
    found = [_kept_picture(by_base), _new_picture(by_base), _forgetting_picture(by_base)]
    return [picture for picture in found if picture is not None]


def _kept_picture(by_base: Mapping[str, Sequence[MergedSet]]) -> Picture | None:
    """Each method's mean and range over sets, a panel for each base and number of adapters."""
    panels = []
    columns = 0
    for base, sets in by_base.items():
        sizes = sorted({size for each in sets for size in each.kept})
        columns = max(columns, len(sizes))
        for size in sizes:
            methods = list(dict.fromkeys(name for each in sets for name in each.kept.get(size, {})))
            lines = []
            for place, name in enumerate(methods):
                values = [each.kept[size][name][0] for each in sets if name in each.kept.get(size, {})]
                is_control = any(each.kept.get(size, {}).get(name, (0.0, False))[1] for each in sets)
                look = _CONTROL if is_control else _SET_LOOKS[0]
                point = across_point(-place, values, name, unit="%")
                lines.append(Line(name=name, look=look, kind="across", points=(point,)))
            panels.append(
                Panel(
                    title=f"{base}, {size} adapters",
                    x=Axis(title="kept, %"),
                    y=Axis(title="", ticks=tuple((-place, name) for place, name in enumerate(methods))),
                    lines=tuple(lines),
                )
            )
    return picture_of("merge-kept", panels, columns)


def _new_picture(by_base: Mapping[str, Sequence[MergedSet]]) -> Picture | None:
    """Merged-only intruders of sums and of sums in random directions, a panel for each base."""
    panels, without = [], []
    for base, sets in by_base.items():
        names = list(dict.fromkeys(name for each in sets for name in each.new))
        if not any(each.new[name][0] for each in sets for name in each.new):
            without.append(base)
            continue
        lines, chance = [], []
        for place, name in enumerate(names):
            own = [each.new[name] for each in sets if name in each.new]
            point = across_point(-place, [found for found, _ in own], name)
            lines.append(Line(name=name, look=_SET_LOOKS[0], kind="across", points=(point,)))
            chance.append(across_point(-place, [null for _, null in own], f"{name}, in random directions"))
        title, look = BY_CHANCE
        lines.append(Line(name=title, look=look, kind="marks", points=tuple(chance)))
        panels.append(
            Panel(
                title=base,
                x=Axis(title="merged-only intruders", from_zero=True),
                y=Axis(title="", ticks=tuple((-place, name) for place, name in enumerate(names))),
                lines=tuple(lines),
            )
        )
    note = f"There are none in any sum of {' or '.join(without)}." if without else ""
    return picture_of("merge-intruders", panels, len(panels), note=note)


def _forgetting_picture(by_base: Mapping[str, Sequence[MergedSet]]) -> Picture | None:
    """A mark for each sum: its forgetting against each figure, a row of panels for each base."""
    panels = []
    for base, sets in by_base.items():
        for figure, title in FIGURES.items():
            lines = [
                Line(
                    name=f"sums of {size}",
                    look=look,
                    kind="marks",
                    points=tuple(
                        Point(x=merge[figure], y=merge["forgetting"], tooltip=_sum_text(each, merge, title))
                        for each in sets
                        for merge in each.sums
                        if len(merge["tasks"]) == size
                    ),
                )
                for size, look in _SUM_LOOKS.items()
            ]
            panels.append(
                Panel(
                    title=base,
                    x=Axis(title=title),
                    y=Axis(title="forgetting, nats per token"),
                    lines=tuple(line for line in lines if line.points),
                    has_zero=True,
                )
            )
    return picture_of("merge-forgetting", panels, 3)


def _sum_text(merged: MergedSet, merge: Mapping[str, Any], title: str) -> str:
    figure = next(merge[name] for name, each in FIGURES.items() if each == title)
    return (
        f"{' + '.join(merge['tasks'])}, seed {merged.seed}\n{title} {number(figure)}\n"
        f"forgetting {number(merge['forgetting'])} nats per token"
    )
