"""Arms beside each other as horizontal ranges: alpha, methods, and forgetting at equal fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.plots.study_arms import ARMS, BY_CHANCE, RANKS, column, fine, fit, of, once, tasks, values
from intruscope.plots.study_picture import Axis, Line, LineStyle, Panel, across_point, picture_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.plots.study_arms import Get, Rows
    from intruscope.plots.study_picture import Picture

    Quantity = tuple[str, Get, str]
    """Title, figure and unit."""


def alpha_picture(rows: Rows) -> Picture | None:
    """Count, effective rank, forgetting and fit of the arms at alpha 2r and at alpha 8."""
    arms = {
        "full": "full",
        "alpha2r_r16": "lora_r16",
        "alpha2r_r64": "lora_r64",
        "lora_full_width": "lora_full_width",
        "alpha8_r16": "alpha8_r16",
        "alpha8_r64": "alpha8_r64",
        "alpha8_full_width": "alpha8_full_width",
    }
    return ranges_picture(
        rows,
        {arm: ARMS[name] for arm, name in arms.items()},
        [
            ("intruders", column("count"), ""),
            ("effective rank of the update", column("effective_rank"), ""),
            ("forgetting, nats per token", column("forgetting"), " nats"),
        ],
        kind="alpha",
    )


def methods_picture(rows: Rows) -> Picture | None:
    """Count, forgetting and fit of other methods beside LoRA at rank 8."""
    arms = {
        "lora_r8": ARMS["lora_r8"],
        "b_only": ("B only", LineStyle(0, 0)),
        "adalora": ("AdaLoRA", LineStyle(1, 1)),
        "lora_plus": ("LoRA+", LineStyle(3, 3)),
        "pissa": ("PiSSA", LineStyle(4, 4)),
        "vera": ("VeRA", LineStyle(5, 5)),
    }
    return ranges_picture(
        rows,
        arms,
        [
            ("intruders", column("count"), ""),
            ("forgetting, nats per token", column("forgetting"), " nats"),
        ],
        kind="methods",
    )


def equal_fit_picture(rows: Rows) -> Picture | None:
    """Forgetting where all arms fit alike, and at the end.

    Args:
        rows: With ``forgetting_at_fit`` and ``forgetting_at_end``.
    """
    return ranges_picture(
        rows,
        {arm: ARMS[arm] for arm in RANKS},
        [
            ("forgetting at equal fit, nats", column("forgetting_at_fit"), " nats"),
            ("forgetting at the end, nats", column("forgetting_at_end"), " nats"),
        ],
        kind="equal-fit",
    )


def ranges_picture(
    rows: Rows,
    arms: Mapping[str, tuple[str, LineStyle]],
    quantities: Sequence[Quantity],
    *,
    kind: str,
) -> Picture | None:
    """Each arm's mean and range across; a row for each quantity and one for the fit, a column for each task.

    Args:
        rows: Of a study.
        arms: Name and look of each, from the top down.
        quantities: What is drawn; of ``count`` the chance beside it.
        kind: Of the picture.
    """
    shown = [row for row in fine(rows) if row["arm"] in arms]
    places = tasks(shown)
    present = [arm for arm in arms if of(shown, arm=arm)]
    panels = []
    for line in range(len(quantities) + 1):
        for task, base in places:
            own = of(shown, task=task)
            title, get, unit = quantities[line] if line < len(quantities) else fit(own)
            panels.append(
                Panel(
                    title=f"{task}, {base}",
                    x=Axis(title=title),
                    y=Axis(title="", ticks=tuple((-i, arms[arm][0]) for i, arm in enumerate(present))),
                    lines=tuple(_ranges(own, present, arms, get, unit, has_chance=title == "intruders")),
                )
            )
    return picture_of(kind, panels, len(places))


def _ranges(
    rows: Rows,
    present: Sequence[str],
    arms: Mapping[str, tuple[str, LineStyle]],
    get: Get,
    unit: str,
    *,
    has_chance: bool,
) -> list[Line]:
    lines = []
    chance = []
    for place, arm in enumerate(present):
        own = once(of(rows, arm=arm))
        name, look = arms[arm]
        if found := values(own, get):
            point = across_point(-place, found, name, unit=unit)
            lines.append(Line(name=name, look=look, kind="across", points=(point,)))
        if has_chance and (found := values(own, column("null_count"))):
            chance.append(across_point(-place, found, f"{name}, by chance"))
    if chance:
        name, look = BY_CHANCE
        lines.append(Line(name=name, look=look, kind="marks", points=tuple(chance)))
    return lines
