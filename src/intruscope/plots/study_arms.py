"""The arms of a study in pictures: one name and one look each, whatever the picture, and the rows of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from intruscope.plots.study_picture import Line, LineStyle, mean_point, number

Row = Mapping[str, Any]
Rows = Sequence[Row]
Get = Callable[[Row], float | None]
"""A figure of a row; None where it has none."""

ARMS: Mapping[str, tuple[str, LineStyle]] = {
    "full": ("full", LineStyle(0, 0, 0)),
    "lora_r1": ("LoRA r 1", LineStyle(1, 1, 1)),
    "lora_r8": ("LoRA r 8", LineStyle(2, 2, 2)),
    "lora_r16": ("LoRA r 16", LineStyle(3, 3, 3)),
    "lora_r64": ("LoRA r 64", LineStyle(4, 4, 4)),
    "lora_full_width": ("LoRA full width", LineStyle(5, 5, 5)),
    "lora_r256": ("LoRA r 256", LineStyle(3, 4, 5, is_hollow=True)),
    "lora_r2048": ("LoRA r 2048", LineStyle(5, 0, 3, is_hollow=True)),
    "alpha8_r1": ("r 1, alpha 8", LineStyle(1, 1, 4, is_hollow=True)),
    "alpha8_r8": ("r 8, alpha 8", LineStyle(2, 2, 5, is_hollow=True)),
    "alpha8_r16": ("r 16, alpha 8", LineStyle(3, 3, 1, is_hollow=True)),
    "alpha8_r64": ("r 64, alpha 8", LineStyle(4, 4, 2, is_hollow=True)),
    "alpha8_full_width": ("full width, alpha 8", LineStyle(5, 5, 1, is_hollow=True)),
}
"""Name and look of every arm. One at alpha 8 has its twin's colour, and open marks."""
RANKS = ("full", "lora_r1", "lora_r8", "lora_r16", "lora_r64", "lora_r256", "lora_r2048", "lora_full_width")
"""Arms of the counts, full fine-tuning and then by rank."""
EPSILON = 0.5
"""Under which a vector is an intruder, in every picture that draws the line (arXiv 2410.21228, section 3)."""
BY_CHANCE = ("by chance: random directions, same spectrum", LineStyle(None, 0, 1, is_hollow=True))


def fine(rows: Iterable[Row]) -> list[Row]:
    """Rows that were not left out by the rule."""
    return [row for row in rows if row["status"] == "ok"]


def once(rows: Iterable[Row]) -> list[Row]:
    """Each run once, as the first of the arms that it is."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault(row.get("key", id(row)), row)
    return list(first.values())


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows with these columns."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def values(rows: Iterable[Row], get: Get) -> list[float]:
    """What rows have of a figure."""
    return [value for row in rows if (value := get(row)) is not None]


def column(name: str, *, times: float = 1.0) -> Get:
    """A column as a figure."""

    def get(row: Row) -> float | None:
        value = row.get(name)
        return None if value is None else times * float(value)

    return get


def bases(rows: Iterable[Row]) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(str(row["settings"]["base"]) for row in rows))


def tasks(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Task and base, in the order of the rows."""
    return list(dict.fromkeys((str(row["task"]), str(row["settings"]["base"])) for row in rows))


def has_accuracy(rows: Iterable[Row]) -> bool:
    """Whether a task is one of right answers, not of text."""
    return any(row.get("accuracy") is not None for row in rows)


def fit(rows: Iterable[Row]) -> tuple[str, Get, str]:
    """Title, figure and unit of how well a task was learned."""
    if has_accuracy(rows):
        return "accuracy, %", column("accuracy", times=100.0), "%"
    return "held-out loss, nats per token", column("held_out_loss"), " nats"


def run_text(row: Row) -> str:
    """Base, task, method with its options, rate and seed of one run."""
    settings = row["settings"]
    options = settings.get("options", {})
    shown = "".join(f", {name} {options[name]:g}" for name in ("rank", "alpha") if name in options)
    rate = f"rate {number(settings['rate'])}, seed {row['seed']}" if "rate" in settings else "published"
    return f"{settings['base']}, {row['task']}: {settings.get('method', row['arm'])}{shown}\n{rate}"


def arm_name(arm: str) -> str:
    """How legends call an arm."""
    if arm in ARMS:
        return ARMS[arm][0]
    words = re.sub(r"^alpha2r_", "lora_", arm)
    return ARMS[words][0] if words in ARMS else words.replace("_", " ")


def over_setting(
    rows: Iterable[Row], setting: str, get: Get, arm: str, words: Callable[[float], str], *, unit: str = ""
) -> list[Line]:
    """A line over a setting that rows differ in: mean and range of a figure at each value; none without any.

    Args:
        rows: Of one arm.
        setting: Name of the setting.
        get: The figure.
        arm: Whose name and look the line has.
        words: Describes a value of the setting.
        unit: Of the figure, with a space before it where there is one.
    """
    name, look = ARMS[arm]
    groups: dict[float, list[float]] = {}
    for row in rows:
        groups.setdefault(float(row["settings"][setting]), []).extend(values([row], get))
    points = tuple(
        mean_point(x, found, f"{name}, {words(x)}", unit=unit) for x, found in sorted(groups.items()) if found
    )
    return [Line(name=name, look=look, kind="mean", points=points)] if points else []
