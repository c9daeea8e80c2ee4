"""Forgetting in a study's runs, as pictures: rates, correlations, lives of intruders, interventions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from intruscope.plots.study_arms import (
    ARMS,
    EPSILON,
    RANKS,
    arm_name,
    column,
    fine,
    fit,
    of,
    once,
    over_setting,
    run_text,
    tasks,
)
from intruscope.plots.study_picture import (
    Axis,
    Line,
    LineStyle,
    Panel,
    Picture,
    Point,
    mean_point,
    number,
    picture_of,
    shifts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.plots.study_arms import Get, Row, Rows

_FORGETTING = "forgetting, nats per token"
_CONTROL_LOOKS = (
    LineStyle(1, 1),
    LineStyle(0, 0, 1),
    LineStyle(2, 2, 2),
    LineStyle(5, 5, 3),
    LineStyle(3, 3, 4),
    LineStyle(4, 4, 5),
)
"""The edit in the warm colour, as in the sweep's pictures."""


def rates_picture(rows: Rows) -> Picture | None:
    """Count, forgetting and fit over the learning rate, a column for each task."""
    shown = [row for row in fine(rows) if "rate" in row["settings"]]
    places = tasks(shown)
    panels = []
    for what in ("count", "forgetting", "fit"):
        for task, base in places:
            own = once(of(shown, task=task))
            title, get, unit = {
                "count": ("intruders", column("count"), ""),
                "forgetting": (_FORGETTING, column("forgetting"), " nats"),
                "fit": fit(own),
            }[what]
            lines = []
            for method, arm in (("full", "full"), ("lora", "lora_r8")):
                tuned = [row for row in own if row["settings"]["method"] == method]
                lines += over_setting(tuned, "rate", get, arm, lambda x: f"rate {number(x)}", unit=unit)
            found = sorted({point.x for line in lines for point in line.points})
            panels.append(
                Panel(
                    title=f"{task}, {base}",
                    x=Axis(title="learning rate", ticks=_decades(found), is_log=True),
                    y=Axis(title=title, from_zero=what == "count"),
                    lines=tuple(lines),
                    has_zero=what == "forgetting",
                )
            )
    return picture_of("rates", panels, len(places))


def _decades(found: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Ticks at 1 and 3 times the powers of ten that the values span."""
    if not found:
        return ()
    low, high = math.floor(math.log10(found[0])), math.ceil(math.log10(found[-1]))
    every = [
        (factor * 10.0**power, f"{factor}e{power}") for power in range(low, high + 1) for factor in (1, 3)
    ]
    return tuple(
        (value, text.replace("-", "−")) for value, text in every if found[0] / 1.3 <= value <= found[-1] * 1.3
    )


def scatter_picture(rows: Rows) -> Picture | None:
    """A mark for each run: forgetting over the count and over the update's norm, fit over the count."""
    shown = fine(rows)
    places = tasks(shown)
    count: tuple[str, Get] = ("intruders", column("count"))
    norm: tuple[str, Get] = ("norm of the update", column("update_norm"))
    panels = []
    for what, (x_title, get_x) in (("forgetting", count), ("forgetting", norm), ("fit", count)):
        for task, base in places:
            own = once(of(shown, task=task))
            y_title, get_y, _ = (_FORGETTING, column("forgetting"), "") if what == "forgetting" else fit(own)
            panels.append(
                Panel(
                    title=f"{task}, {base}",
                    x=Axis(title=x_title, from_zero=True),
                    y=Axis(title=y_title),
                    lines=tuple(_marks(own, get_x, get_y)),
                    has_zero=what == "forgetting",
                )
            )
    return picture_of("scatter", panels, len(places))


def _marks(rows: Rows, get_x: Get, get_y: Get) -> list[Line]:
    lines = []
    for arm, own in _kinds(rows).items():
        points = []
        for row in own:
            x, y = get_x(row), get_y(row)
            if x is not None and y is not None:
                points.append(Point(x=x, y=y, tooltip=_mark_text(row)))
        if points:
            name, look = ARMS[arm]
            lines.append(Line(name=name, look=look, kind="marks", points=tuple(points)))
    return lines


def _kinds(rows: Rows) -> dict[str, list[Row]]:
    """Runs by the arm that they are at another rate, in the order of the arms."""
    found: dict[str, list[Row]] = {arm: [] for arm in ARMS}
    for row in rows:
        arm = str(row["arm"])
        kind = arm if arm in ARMS else "full" if arm.startswith("full") else arm.rpartition("_")[0]
        found[kind].append(row)
    return {arm: own for arm, own in found.items() if own}


def _mark_text(row: Row) -> str:
    lines = [run_text(row)]
    for name, words in (
        ("count", "{} intruders"),
        ("null_count", "{} by chance"),
        ("forgetting", "forgetting {} nats per token"),
        ("update_norm", "norm of the update {}"),
        ("accuracy", "accuracy {}"),
    ):
        if row.get(name) is not None:
            lines.append(words.format(number(row[name])))
    return "\n".join(lines)


def lives_picture(rows: Rows) -> Picture | None:
    """Intruders and forgetting while training goes on, a line for each seed."""
    shown = [row for row in fine(rows) if row.get("looks")]
    places = tasks(shown)
    panels = []
    for what, title in (("count", "intruders"), ("forgetting", _FORGETTING)):
        for task, base in places:
            own = of(shown, task=task)
            lines = [
                line for arm in RANKS for row in of(own, arm=arm) for line in _course(row, what, *ARMS[arm])
            ]
            panels.append(
                Panel(
                    title=f"{task}, {base}",
                    x=Axis(title="step", from_zero=True),
                    y=Axis(title=title, from_zero=what == "count"),
                    lines=tuple(lines),
                    has_zero=what == "forgetting",
                )
            )
    return picture_of("lives", panels, len(places))


def _course(row: Row, what: str, name: str, look: LineStyle) -> list[Line]:
    points = tuple(
        Point(
            x=look_["step"],
            y=look_[what],
            tooltip=f"{name}, seed {row['seed']}\nstep {look_['step']}: {number(look_[what])}",
        )
        for look_ in row["looks"]
        if look_[what] is not None
    )
    return [Line(name=name, look=look, kind="course", points=points)] if points else []


def courses_picture(rows: Rows) -> Picture | None:
    """Single intruders of one task and seed over the steps: singular value above, alignment below."""
    found = [row for row in fine(rows) if row.get("followed")]
    if not found:
        return None
    own = of(found, task=found[0]["task"], seed=found[0]["seed"])
    arms = [row for arm in RANKS for row in of(own, arm=arm)]
    panels = []
    for what, title in (
        ("singular_value", "singular value"),
        ("alignment", "largest |cosine| with the base"),
    ):
        panels += [
            Panel(
                title=arm_name(row["arm"]),
                x=Axis(title="step", from_zero=True),
                y=Axis(title=title, from_zero=True, to=1.0 if what == "alignment" else None),
                lines=tuple(_followed(row, what)),
                threshold=EPSILON if what == "alignment" else None,
            )
            for row in arms
        ]
    first = arms[0]
    note = f"The runs are those of {first['settings']['base']} on {first['task']}, seed {first['seed']}."
    return picture_of("courses", panels, len(arms), note=note)


def _followed(row: Row, what: str) -> list[Line]:
    lines = []
    named = what.replace("_", " ")
    for place, course in enumerate(row["followed"]):
        points = tuple(
            Point(
                x=step,
                y=value,
                tooltip=f"{course['matrix']}\nstep {step}: vector {rank}, {named} {number(value)}",
            )
            for step, rank, value in zip(course["step"], course["rank"], course[what], strict=True)
        )
        look = LineStyle(place % 6, place % 6, place // 6)
        lines.append(Line(name="an intruder", look=look, kind="course", points=points))
    return lines


# --- interventions ---------------------------------------------------------------------------------------


def edits_pictures(rows: Rows, controls: Mapping[str, str]) -> list[Picture]:
    """A picture for each arm: fit and forgetting over the strength, the edit beside its controls.

    Args:
        rows: Of the interventions.
        controls: Name of each, the edit first.
    """
    shown = [row for row in fine(rows) if row.get("interventions")]
    pictures = []
    for arm in dict.fromkeys(row["arm"] for row in shown):
        own = of(shown, arm=arm)
        places = tasks(own)
        panels = [
            _edit_panel(of(own, task=task), f"{task}, {base}", what, controls)
            for what in ("fit", "forgetting")
            for task, base in places
        ]
        found = picture_of("interventions", panels, len(places), which=arm_name(arm))
        pictures += [found] if found else []
    return pictures


def _edit_panel(rows: Rows, title: str, what: str, controls: Mapping[str, str]) -> Panel:
    figure, factor, axis, unit = _edit_figure(rows, what)
    lines = []
    drawn = [control for control in controls if any(control in row["interventions"] for row in rows)]
    for shift, control in zip(shifts(len(drawn)), drawn, strict=True):
        look = _CONTROL_LOOKS[list(controls).index(control) % len(_CONTROL_LOOKS)]
        name = controls[control]
        groups: dict[float, list[float]] = {}
        for row in rows:
            for strength, cell in row["interventions"].get(control, {}).items():
                if figure in cell:
                    groups.setdefault(float(strength), []).append(factor * cell[figure])
        if not groups:
            continue
        points = [
            mean_point(strength, found, f"{name}, strength {strength:g}", unit=unit)
            for strength, found in groups.items()
        ]
        points.append(Point(x=1.0, y=0.0, tooltip=f"{name}, strength 1\nthe tuned model: no change"))
        lines.append(
            Line(
                name=name,
                look=look,
                kind="mean",
                points=tuple(sorted(points, key=lambda point: point.x)),
                shift=shift,
            )
        )
    strengths = sorted({point.x for line in lines for point in line.points})
    return Panel(
        title=title,
        x=Axis(title="strength", ticks=tuple((x, f"{x:g}".replace("0.", ".")) for x in strengths)),
        y=Axis(title=axis),
        lines=tuple(lines),
        has_zero=True,
    )


def _edit_figure(rows: Rows, what: str) -> tuple[str, float, str, str]:
    """Column, factor, title and unit; a share of the forgetting where every run forgot something."""
    cells: list[Mapping[str, Any]] = [
        cell for row in rows for by_strength in row["interventions"].values() for cell in by_strength.values()
    ]
    if what == "fit":
        if all("accuracy_change" in cell for cell in cells):
            return "accuracy_change", 100.0, "change of accuracy, points", " points"
        return "loss_change", 1.0, "change of held-out loss, nats", " nats"
    if all("forgetting_share" in cell for cell in cells):
        return "forgetting_share", 100.0, "change of forgetting, %", "%"
    return "forgetting_change", 1.0, "change of forgetting, nats", " nats"
