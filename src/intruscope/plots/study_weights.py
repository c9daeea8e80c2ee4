"""What the weights of a study's runs say, as pictures: maps, and counts over epsilon, k, ranks and data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.plots.study_arms import (
    ARMS,
    BY_CHANCE,
    EPSILON,
    RANKS,
    arm_name,
    bases,
    column,
    fine,
    of,
    over_setting,
    tasks,
    values,
)
from intruscope.plots.study_picture import (
    Axis,
    Line,
    LineStyle,
    MapPanel,
    Panel,
    Picture,
    Point,
    mean_point,
    picture_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.plots.study_arms import Get, Row, Rows

_NUM_FIFTHS = 5
_MAPPED_ARMS = 6


# --- one matrix ------------------------------------------------------------------------------------------


def _mapped(rows: Rows) -> list[Row]:
    """The arms of the first task and seed that have a map, full fine-tuning and then by rank."""
    found = [row for row in fine(rows) if row.get("similarity")]
    if not found:
        return []
    own = of(found, task=found[0]["task"], seed=found[0]["seed"])
    return sorted((row for row in own if row["arm"] in RANKS), key=lambda row: RANKS.index(row["arm"]))


def similarity_picture(rows: Rows) -> Picture | None:
    """Maps of one matrix, an arm each; None where no run has one."""
    shown = _mapped(rows)[:_MAPPED_ARMS]
    if not shown:
        return None
    panels = [
        MapPanel(
            title=arm_name(row["arm"]),
            num_base=row["similarity"]["num_base"],
            num_tuned=row["similarity"]["num_tuned"],
            hundredths=tuple(row["similarity"]["hundredths"]),
        )
        for row in shown
    ]
    return Picture(
        kind="similarity",
        panels=tuple(panels),
        columns=3,
        note=f"The matrix is {shown[0]['similarity']['matrix']}, of {_place(shown[0])}.",
    )


def profile_picture(rows: Rows) -> Picture | None:
    """An intruder's cosines with every base vector, and another vector's; None without an intruder."""
    with_both = [row for row in _mapped(rows) if len(row["similarity"]["profiles"]) > 1]
    if not with_both:
        return None
    row = with_both[0]
    similarity = row["similarity"]
    words = {"intruder": "An intruder", "other": "Another vector"}
    panels = []
    for what, look in (("intruder", LineStyle(1, None)), ("other", LineStyle(0, None))):
        profile = similarity["profiles"][what]
        where = f"vector {profile['place'] + 1} of the tuned matrix"
        points = tuple(
            Point(x=place, y=level / 100, tooltip=f"{where}, base vector {place}\n|cosine| {level / 100:.2f}")
            for place, level in enumerate(profile["hundredths"], start=1)
        )
        panels.append(
            Panel(
                title=f"{words[what]}: vector {profile['place'] + 1}",
                x=Axis(title="vector of the base"),
                y=Axis(title="|cosine|", from_zero=True, to=1.0),
                lines=(Line(name=words[what], look=look, kind="course", points=points),),
                threshold=EPSILON,
            )
        )
    return Picture(
        kind="profile",
        panels=tuple(panels),
        columns=2,
        note=f"The matrix is {similarity['matrix']} after {arm_name(row['arm'])}, of {_place(row)}.",
    )


def _place(row: Row) -> str:
    return f"{row['settings']['base']} on {row['task']}, seed {row['seed']}"


# --- counts ----------------------------------------------------------------------------------------------


def epsilon_picture(rows: Rows) -> Picture | None:
    """Share of candidates that intrude over epsilon, a panel for each base."""
    shown = [row for row in fine(rows) if row.get("counts")]
    panels = []
    for base in bases(shown):
        own = [row for row in shown if row["settings"]["base"] == base]
        epsilons = sorted(own[0]["counts"], key=float)
        lines = _by_arm(own, [(float(e), _share_at(e)) for e in epsilons], "epsilon {x:g}", unit="%")
        panels.append(
            Panel(
                title=base,
                x=Axis(title="epsilon", ticks=tuple((float(e), e) for e in epsilons)),
                y=Axis(title="intruders in top ten, %", from_zero=True),
                lines=(*lines, *_chance_at(own, EPSILON)),
            )
        )
    return picture_of("epsilon", panels, 2)


def depth_picture(rows: Rows) -> Picture | None:
    """Intruders over k, and by fifth of all ranks, a row for each base."""
    shown = [row for row in fine(rows) if row.get("counts_by_k") and row.get("by_fifth")]
    panels = []
    for base in bases(shown):
        own = [row for row in shown if row["settings"]["base"] == base]
        ks = sorted(own[0]["counts_by_k"], key=int)
        lines = _by_arm(own, [(float(k), _count_by_k(k)) for k in ks], "k = {x:g}")
        panels.append(
            Panel(
                title=base,
                x=Axis(
                    title="k (leading vectors per matrix)",
                    ticks=tuple((float(k), k) for k in ks),
                    is_log=True,
                ),
                y=Axis(title="intruders in the model", from_zero=True),
                lines=tuple(lines),
            )
        )
        fifths = [(float(place), _fifth(place)) for place in range(_NUM_FIFTHS)]
        names = ("1st", "2nd", "3rd", "4th", "5th")
        panels.append(
            Panel(
                title=f"{base}, all vectors",
                x=Axis(title="fifth of the ranks", ticks=tuple(enumerate(names))),
                y=Axis(title="intruders in the model", from_zero=True),
                lines=tuple(_by_arm(own, fifths, "fifth {x:g} from 0")),
            )
        )
    return picture_of("depth", panels, 2)


def _by_arm(rows: Rows, figures: Sequence[tuple[float, Get]], what: str, *, unit: str = "") -> list[Line]:
    """A line for each arm of the counts that has rows: mean and range of each figure at its place."""
    lines = []
    for arm in RANKS:
        own = of(rows, arm=arm)
        name, look = ARMS[arm]
        points = tuple(
            mean_point(x, found, f"{name}, {what.format(x=x)}", unit=unit)
            for x, get in figures
            if (found := values(own, get))
        )
        if points:
            lines.append(Line(name=name, look=look, kind="band", points=points))
    return lines


def _chance_at(rows: Rows, epsilon: float) -> list[Line]:
    points = []
    for arm in RANKS:
        found = values(of(rows, arm=arm), _null_share)
        if found:
            what = f"{arm_name(arm)}, by chance, epsilon {epsilon:g}"
            points.append(mean_point(epsilon, found, what, unit="%"))
    name, look = BY_CHANCE
    return [Line(name=name, look=look, kind="marks", points=tuple(points))] if points else []


def _share_at(epsilon: str) -> Get:
    return lambda row: 100.0 * row["counts"][epsilon] / row["candidates"]


def _count_by_k(k: str) -> Get:
    return lambda row: row["counts_by_k"].get(k)


def _fifth(place: int) -> Get:
    return lambda row: row["by_fifth"][place]


def _null_share(row: Row) -> float | None:
    found = row.get("null_count")
    return None if found is None else 100.0 * found / row["candidates"]


def data_picture(rows: Rows, counts: Rows) -> Picture | None:
    """Intruders over the number of examples, a panel for each task.

    Args:
        rows: Of the data sizes: ranks 1 and 8.
        counts: Of the counts, for full fine-tuning on all examples.
    """
    shown = fine(rows)
    panels = []
    for task, base in tasks(shown):
        own = of(shown, task=task)
        lines = []
        for rank in (1, 8):
            ranked = [row for row in own if row["arm"].startswith(f"r{rank}_")]
            lines += over_setting(ranked, "examples", column("count"), f"lora_r{rank}", _examples)
        full = of(fine(counts), task=task, arm="full")
        lines += over_setting(full, "examples", column("count"), "full", _examples)
        sizes = sorted({point.x for line in lines for point in line.points})
        panels.append(
            Panel(
                title=f"{task}, {base}",
                x=Axis(title="training examples", ticks=tuple((x, f"{x:,.0f}") for x in sizes)),
                y=Axis(title="intruders", from_zero=True),
                lines=tuple(lines),
            )
        )
    return picture_of("data-size", panels, 4)


def _examples(count: float) -> str:
    return f"{count:,.0f} examples"
