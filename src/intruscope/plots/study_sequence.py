"""Task after task, as a picture: accuracy of every task and intruders after each stage, by arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.plots.study_arms import ARMS, bases, fine, of
from intruscope.plots.study_picture import Axis, Line, Panel, Picture, mean_point, picture_of, shifts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.plots.study_arms import Row, Rows


def sequence_pictures(rows: Rows) -> list[Picture]:
    """For every base that went through a chain: a panel for each task, and one for the intruders.

    Args:
        rows: Of chains: ``accuracies`` (stage by task, the base first) and ``counts_by_stage``.
    """
    shown = [row for row in fine(rows) if row.get("accuracies")]
    found = []
    for base in bases(shown):
        own = [row for row in shown if row["settings"]["base"] == base]
        names = [str(name) for name in own[0]["settings"]["tasks"]]
        panels = [_task_panel(own, names, place) for place in range(len(names))]
        panels += [_earlier_panel(own, names), _count_panel(own, names)]
        note = (
            f"The stages: {', '.join(names)}; an adapter is merged after each, and the next one starts anew."
        )
        which = base if len(bases(shown)) > 1 else ""
        picture = picture_of("sequence", panels, 3, which=which, note=note)
        found += [picture] if picture else []
    return found


def _stages(names: Sequence[str], first: int) -> Axis:
    ticks = [(0, "base"), *enumerate(names, start=1)]
    return Axis(title="after", ticks=tuple((float(at), name) for at, name in ticks if at >= first))


def _task_panel(rows: Rows, names: Sequence[str], place: int) -> Panel:
    def get(row: Row, stage: int) -> float:
        return 100.0 * float(row["accuracies"][stage][place])

    return Panel(
        title=f"{names[place]}, trained {_ordinal(place + 1)}",
        x=_stages(names, 0),
        y=Axis(title="accuracy, %"),
        lines=_lines(rows, names, range(len(names) + 1), get, "%"),
    )


def _earlier_panel(rows: Rows, names: Sequence[str]) -> Panel:
    """Mean over earlier tasks of accuracy now less accuracy right after their own stage."""

    def get(row: Row, stage: int) -> float:
        now, then = row["accuracies"][stage], [row["accuracies"][k + 1][k] for k in range(stage - 1)]
        return 100.0 * float(sum(now[k] - then[k] for k in range(stage - 1))) / (stage - 1)

    return Panel(
        title="Change on earlier tasks",
        x=_stages(names, 2),
        y=Axis(title="change of accuracy, points"),
        lines=_lines(rows, names, range(2, len(names) + 1), get, " points"),
        has_zero=True,
    )


def _count_panel(rows: Rows, names: Sequence[str]) -> Panel:
    return Panel(
        title="Intruders",
        x=_stages(names, 1),
        y=Axis(title="intruders", from_zero=True),
        lines=_lines(
            rows,
            names,
            range(1, len(names) + 1),
            lambda row, stage: float(row["counts_by_stage"][stage - 1]),
            "",
        ),
    )


def _lines(
    rows: Rows, names: Sequence[str], stages: range, get: Callable[[Row, int], float], unit: str
) -> tuple[Line, ...]:
    present = [arm for arm in ARMS if of(rows, arm=arm)]
    lines = []
    for shift, arm in zip(shifts(len(present), room=0.01), present, strict=True):
        name, look = ARMS[arm]
        own = of(rows, arm=arm)
        points = tuple(
            mean_point(
                float(stage),
                [get(row, stage) for row in own],
                f"{name}, after {names[stage - 1] if stage else 'nothing: the base'}",
                unit=unit,
            )
            for stage in stages
        )
        lines.append(Line(name=name, look=look, kind="mean", points=points, shift=shift))
    return tuple(lines)


def _ordinal(place: int) -> str:
    names = ("first", "second", "third", "fourth", "fifth", "sixth")
    return names[place - 1] if place <= len(names) else f"as number {place}"
