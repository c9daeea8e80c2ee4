"""What the looks of a run say: the lives of its intruders, and how fit and forgetting went together."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from intruscope.train.look_file import read_looks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from intruscope.train.look_file import Look
    from intruscope.train.looks import VectorLook

Point = dict[str, float | None]
LEAST_FIT = 0.25
"""Share of the best run's gain on the held-out loss below which a run does not count."""
_DIGITS = 4
"""Significant ones of what is kept for pictures."""


def life_figures(run: Path, *, num_followed: int = 0) -> dict[str, Any]:
    """Figures of a watched run.

    Args:
        run: Its folder, finished.
        num_followed: Intruders at most whose whole course is kept.

    Returns:
        ``rank_change``, ``log_growth``, ``alignment_change`` (means over the intruders of the last look, from
        the first look that saw the vector to the last; None without any that two looks saw),
        ``most_at_any_look``, and ``looks``: step, count, forgetting and held-out loss of each. Where some are
        followed, ``followed`` too (:func:`followed`).

    Raises:
        MalformedInput: the file of looks is none.
    """
    _, looks = read_looks(run / "intruders" / "looks.jsonl")
    log = json.loads((run / "run.json").read_bytes())["log"]
    losses = {entry["step"]: entry["eval_loss"] for entry in log if entry.get("eval_loss") is not None}
    points: list[Point] = [
        {
            "step": look.step,
            "count": len(look.intruders),
            "forgetting": look.forgetting,
            "held_out_loss": losses.get(look.step),
        }
        for look in looks
    ]
    return {
        **_lives(looks),
        "most_at_any_look": max(len(look.intruders) for look in looks),
        "looks": points,
        **({"followed": followed(looks, num_followed)} if num_followed else {}),
    }


def followed(looks: Sequence[Look], most: int) -> list[dict[str, Any]]:
    """The courses of intruders of the last look, from the first look that saw each.

    Where there are more than ``most``, every so manieth is taken in the order of matrices and ranks:
    none is chosen for how it looks.

    Args:
        looks: Of one run, in order.
        most: At most so many.

    Returns:
        Of each its ``matrix``, and at every step that saw it, as lists: ``step``, ``rank`` (from 1),
        ``singular_value`` and ``alignment``.
    """
    last = [
        (place, vector.track)
        for place, matrix in enumerate(looks[-1].matrices)
        for vector in matrix.vectors
        if vector.verdict == "intruder"
    ]
    chosen = [last[number * len(last) // most] for number in range(most)] if len(last) > most else last
    return [_course(looks, place, track) for place, track in chosen]


def _course(looks: Sequence[Look], place: int, track: int) -> dict[str, Any]:
    course: dict[str, Any] = {"matrix": looks[-1].matrices[place].name}
    course |= {name: [] for name in ("step", "rank", "singular_value", "alignment")}
    for look in looks:
        for rank, vector in enumerate(look.matrices[place].vectors, start=1):
            if vector.track == track:
                course["step"].append(look.step)
                course["rank"].append(rank)
                course["singular_value"].append(_short(vector.singular_value))
                course["alignment"].append(_short(_alignment(vector)))
    return course


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _lives(looks: Sequence[Look]) -> dict[str, float | None]:
    """How the intruders of the last look changed since they were first seen."""
    first: dict[tuple[int, int], tuple[int, VectorLook]] = {}
    last: dict[tuple[int, int], tuple[int, VectorLook]] = {}
    num_seen: dict[tuple[int, int], int] = {}
    for look in looks:
        for place, matrix in enumerate(look.matrices):
            for rank, vector in enumerate(matrix.vectors):
                who = (place, vector.track)
                first.setdefault(who, (rank, vector))
                num_seen[who] = num_seen.get(who, 0) + 1
                if look is looks[-1] and vector.verdict == "intruder":
                    last[who] = (rank, vector)
    lived = [(first[who], now) for who, now in last.items() if num_seen[who] > 1]
    if not lived:
        return dict.fromkeys(("rank_change", "log_growth", "alignment_change"))

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    return {
        "rank_change": mean([now[0] - then[0] for then, now in lived]),
        "log_growth": mean([math.log(now[1].singular_value / then[1].singular_value) for then, now in lived]),
        "alignment_change": mean([_alignment(now[1]) - _alignment(then[1]) for then, now in lived]),
    }


def _alignment(vector: VectorLook) -> float:
    return (vector.alignment_lower + vector.alignment_upper) / 2.0


def forgetting_at(points: Sequence[Point], level: float) -> float | None:
    """Forgetting where the held-out loss first comes down to a level.

    Loss and forgetting are taken as straight between two looks.

    Args:
        points: Looks in the order of training.
        level: Of the held-out loss.

    Returns:
        None where the run never gets there.
    """
    before: tuple[float, float] | None = None
    for point in points:
        loss, forgetting = point["held_out_loss"], point["forgetting"]
        if loss is None or forgetting is None:
            continue
        if loss <= level:
            if before is None or before[0] == loss:
                return forgetting
            share = (before[0] - level) / (before[0] - loss)
            return before[1] + share * (forgetting - before[1])
        before = (loss, forgetting)
    return None


def common_level(runs: Sequence[Sequence[Point]]) -> float | None:
    """The lowest held-out loss that every run reaches; None where one has none."""
    lowest = [
        min((point["held_out_loss"] for point in points if point["held_out_loss"] is not None), default=None)
        for points in runs
    ]
    if not lowest or None in lowest:
        return None
    return max(value for value in lowest if value is not None)


def with_equal_fit(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``forgetting_at_fit`` and ``forgetting_at_end``.

    The level is that which all arms of one task and seed reach, of those that did not diverge. An arm that
    comes to it early is read early in its training, as if it had been stopped there; its learning rate was
    then still that of a longer run.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok" and row.get("looks"):
            groups.setdefault((row["task"], row["seed"]), []).append(row)
    levels = {place: common_level([row["looks"] for row in group]) for place, group in groups.items()}
    found = []
    for row in rows:
        level = levels.get((row["task"], row["seed"])) if row.get("looks") else None
        at_fit = forgetting_at(row["looks"], level) if level is not None and row["status"] == "ok" else None
        found.append({**row, "forgetting_at_fit": at_fit, "forgetting_at_end": row.get("forgetting")})
    return found


def equal_fit_difference(
    rows: Sequence[Mapping[str, Any]], arm: str, other: str
) -> dict[tuple[str, int], float]:
    """Forgetting of one arm less another's, by task and seed, at the lowest held-out loss that both reach.

    An arm that reaches it early is read early in its training, as if it had been stopped there.
    """
    looks: dict[str, dict[tuple[str, int], Sequence[Point]]] = {arm: {}, other: {}}
    for row in rows:
        if row["arm"] in looks and row["status"] == "ok" and row.get("looks"):
            looks[row["arm"]][row["task"], row["seed"]] = row["looks"]
    found = {}
    for where in sorted(looks[arm].keys() & looks[other].keys()):
        both = [looks[name][where] for name in (arm, other)]
        level = common_level(both)
        if level is not None:
            first, second = (forgetting_at(points, level) for points in both)
            if first is not None and second is not None:
                found[where] = first - second
    return found


def without_unfit(records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records in which a run that hardly fits its task has the status ``unfit``, whatever method trained it.

    Fit is what a run gained on the held-out loss of the untrained base, as a share of what the best run on
    that base and task gained. Below a quarter (:data:`LEAST_FIT`) a run does not count: it says nothing of
    what its method does to a model that learns. (An arm that sees a quarter of the data has a third of it.)

    Args:
        records: By key, of one scale. Where no run on a task was watched, the loss of the base is not known:
            its runs stay.
    """
    before: dict[tuple[str, str], float] = {}
    best: dict[tuple[str, str], float] = {}
    for record in records.values():
        where, loss = _place(record), record.get("held_out_loss")
        for point in (record.get("looks") or [])[:1]:
            if point["step"] == 0 and point["held_out_loss"] is not None:
                before.setdefault(where, point["held_out_loss"])
        if loss is not None:
            best[where] = min(loss, best.get(where, math.inf))

    def judged(record: dict[str, Any]) -> dict[str, Any]:
        where, loss = _place(record), record.get("held_out_loss")
        if record["status"] != "ok" or loss is None or where not in before:
            return record
        gain, most = before[where] - loss, before[where] - best[where]
        if gain >= LEAST_FIT * most:
            return record
        reason = f"gained {gain:.3f} nats on the held-out loss of the base, the best run {most:.3f}"
        return {**record, "status": "unfit", "reason": reason}

    return {key: judged(record) for key, record in records.items()}


def _place(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["settings"]["base"], record["settings"].get("task", "")
