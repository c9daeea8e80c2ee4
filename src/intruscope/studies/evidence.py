"""Rows of figures to estimates: by arm, paired by task and seed.

A row is one run: ``arm`` (its part in the study), ``task``, ``seed``, ``status`` and figures. A run that
diverged has the status ``diverged`` and enters no estimate; the report counts such runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intruscope.studies.estimates import Estimate, mean_count, mean_count_difference, stratified_mean

Row = Mapping[str, Any]
Rows = Sequence[Row]
Figure = str | Callable[[Row], float | None]
Arms = str | tuple[str, ...]


def at(*path: str) -> Callable[[Row], float | None]:
    """The figure at a path of names inside a row; None where the path ends early."""

    def value(row: Row) -> float | None:
        found: Any = row
        for name in path:
            found = None if found is None else found.get(name)
        return None if found is None else float(found)

    return value


def less(
    first: Callable[[Row], float | None], second: Callable[[Row], float | None]
) -> Callable[[Row], float | None]:
    """One figure less another; None where either is missing."""

    def value(row: Row) -> float | None:
        a, b = first(row), second(row)
        return None if a is None or b is None else a - b

    return value


def by_run(rows: Rows, figure: Figure, arms: Arms) -> dict[tuple[str, int], float]:
    """A figure per task and seed, averaged over the arms; only where every arm has it."""
    wanted = (arms,) if isinstance(arms, str) else arms
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row["arm"] in wanted and row["status"] == "ok":
            value = row.get(figure) if isinstance(figure, str) else figure(row)
            if value is not None:
                found.setdefault((row["task"], row["seed"]), {})[row["arm"]] = float(value)
    return {
        key: float(np.mean([values[arm] for arm in wanted]))
        for key, values in sorted(found.items())
        if len(values) == len(wanted)
    }


def by_task(values: Mapping[tuple[str, int], float]) -> dict[str, list[float]]:
    """The values of each task, in the order of seeds; a task with one run has no spread and is left out."""
    found: dict[str, list[float]] = {}
    for (task, _), value in values.items():
        found.setdefault(task, []).append(value)
    return {task: seeds for task, seeds in found.items() if len(seeds) > 1}


def cells(rows: Rows, figure: Figure) -> dict[str, dict[str, list[float]]]:
    """A figure of every run by task and arm, in the order of seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm in sorted({row["arm"] for row in rows}):
        for (task, _), value in by_run(rows, figure, arm).items():
            found.setdefault(task, {}).setdefault(arm, []).append(value)
    return found


def mean_of(rows: Rows, figure: Figure, arms: Arms, *, level: float) -> Estimate | None:
    """Mean over tasks and seeds; None without two seeds of a task."""
    values = by_task(by_run(rows, figure, arms))
    return stratified_mean(values, level=level) if values else None


def count_of(rows: Rows, figure: Figure, arms: Arms, *, level: float) -> Estimate | None:
    """Mean count per run; None without two seeds of a task."""
    values = by_task(by_run(rows, figure, arms))
    return mean_count(values, level=level) if values else None


def difference_of(rows: Rows, figure: Figure, arms: Arms, other: Arms, *, level: float) -> Estimate | None:
    """The figure of some arms less that of others, run by run; None without two pairs of a task."""
    first, second = by_run(rows, figure, arms), by_run(rows, figure, other)
    values = by_task({key: first[key] - second[key] for key in first.keys() & second.keys()})
    return stratified_mean(dict(sorted(values.items())), level=level) if values else None


def count_difference(
    counts: Mapping[tuple[str, int], float],
    others: Mapping[tuple[str, int], float],
    *,
    times: float = 1.0,
    level: float,
) -> Estimate | None:
    """Counts less so many times others, run by run (:func:`by_run`); None without two pairs of a task."""
    both = sorted(counts.keys() & others.keys())
    first, second = (by_task({key: each[key] for key in both}) for each in (counts, others))
    return mean_count_difference(first, second, times=times, level=level) if first else None


def number_of_runs(rows: Rows) -> tuple[int, tuple[int, ...], int]:
    """Runs that count, their seeds, and runs that diverged."""
    fine = [row for row in rows if row["status"] == "ok"]
    return len(fine), tuple(sorted({row["seed"] for row in fine})), len(rows) - len(fine)
