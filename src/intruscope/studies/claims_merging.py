"""What would decide our own claims about merging: M1 to M3.

Every bound was set before the runs. A row is one set of adapters (:class:`intruscope.studies.grid.MergeSet`):
``arm`` (``own_starts``, where each adapter has a seed of its own, or ``same_start``), ``task`` (the name of
the base), ``seed``, ``status`` and these figures:

- ``parts``: by task its adapter alone: ``score`` on the held-out examples that are reported, and on those
  that strengths are chosen on (``chosen_on``), ``floor`` and ``chosen_floor`` (what it is counted from),
  ``majority`` (accuracies only: the share of the commonest answer), and whether it ``learned`` the task, as
  runs do (:mod:`intruscope.studies.measure`). A score is an accuracy, counted from 0, or for text minus the
  loss in nats per token, counted from the base's;
- ``merges``: one for each ``rule``, ``size`` (T, number of adapters merged) and ``strength``, with by task
  ``chosen_on`` (score on the examples that strengths are chosen on). At the strength that is chosen and at
  those that nobody chooses (1/T and :data:`UNTUNED`) they also have ``score`` (on the other examples) and
  ``scores`` (of each of these; their mean is the score), and some have ``weights`` and ``forgetting``;
- ``sums``: the sum at full strength of every two adapters, and of every three of the first five, with their
  ``tasks``, ``norm``, the figures of :data:`PREFLIGHT`, ``forgetting``, and the sum of what the adapters
  forget alone (``forgetting_of_parts``); those of two also with ``null_merged_only``, the merged-only
  intruders of the same sum in random directions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.studies.claims_weights import ONE_PER_RUN
from intruscope.studies.estimates import mean_count, mean_count_difference, rank_correlation, stratified_mean
from intruscope.studies.evidence import by_task
from intruscope.studies.verdicts import NATS, POINTS, Statement, shared_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from intruscope.studies.estimates import Estimate
    from intruscope.studies.evidence import Row, Rows

SUM, MEAN = "sum", "mean"
RULES = (
    "ties_dense",
    "ties_knots",
    "ties_core",
    "dare_ties_knots",
    "tsv",
    "iso_core",
    "pico",
    "svc",
)
"""Rules that make one model of several, beside the plain sum; named after the rule and its space."""
EMR, LINEAR, RANDOM = "emr", "peft_linear", "random"
"""EMR is told the task, so it is no single model; PEFT's ``linear`` merges factors, not updates; ``random``
is the sum of updates with the adapters' singular values in random directions."""
TITLES: Mapping[str, str] = {
    SUM: "sum",
    MEAN: "mean (sum at 1/T, nothing chosen)",
    "ties_dense": "TIES, dense",
    "ties_knots": "TIES, KnOTS space",
    "ties_core": "TIES, core space",
    "dare_ties_knots": "DARE-TIES, KnOTS space",
    "tsv": "TSV",
    "iso_core": "Iso-C",
    "pico": "Pico",
    "svc": "SVC",
    EMR: "EMR (is told the task)",
    LINEAR: "PEFT linear (control)",
    RANDOM: "random directions (control)",
}
"""Every way to merge, as tables and statements name it."""
UNTUNED = 0.3
"""A strength that papers use without a search (arXiv 2212.04089)."""
OWN_STARTS, SAME_START = "own_starts", "same_start"
PREFLIGHT = ("inflation", "merged_only", "cosine", "sign_conflict")
"""Figures of a merge before it is run, beside its norm: the largest singular value over the largest of the
parts, intruders that no part has, and, as means over pairs of parts, the cosine of two updates and the share
of entries with opposite signs."""

Merge = dict[str, Any]


def kept(row: Row, merge: Merge, task: str, *, above_majority: bool = False) -> float:
    """The fraction of what an adapter can do that is left of it in a merge.

    Args:
        row: A set.
        merge: One of its merges.
        task: One of the merge's tasks.
        above_majority: Count an accuracy from that of the commonest answer, not from 0.
    """
    part = row["parts"][task]
    floor = part["majority"] if above_majority and part["majority"] is not None else part["floor"]
    return float((merge["score"][task] - floor) / (part["score"] - floor))


def chosen(row: Row, rule: str, size: int) -> Merge | None:
    """The merge of a rule whose strength is best on the examples that strengths are chosen on.

    Args:
        row: A set.
        rule: One of the rules; ``mean`` is the sum at strength 1/T, for which nothing is chosen.
        size: T.

    Returns:
        The best by mean relative score over its tasks, of equals the weakest; None without any.
    """
    if rule == MEAN:
        return at_strength(row, SUM, size, 1.0 / size)
    own = [merge for merge in row["merges"] if (merge["rule"], merge["size"]) == (rule, size)]

    def fit(merge: Merge) -> float:
        return math.fsum(
            value / (row["parts"][task]["chosen_on"] - row["parts"][task]["chosen_floor"])
            for task, value in merge["chosen_on"].items()
        )

    return max(own, key=lambda merge: (round(fit(merge), 9), -merge["strength"]), default=None)


def at_strength(row: Row, rule: str, size: int, strength: float) -> Merge | None:
    """The merge of a rule at a strength; None without one."""
    return next(
        (
            merge
            for merge in row["merges"]
            if (merge["rule"], merge["size"]) == (rule, size) and math.isclose(merge["strength"], strength)
        ),
        None,
    )


def sizes(row: Row) -> list[int]:
    """Every T that a set was merged at."""
    return sorted({merge["size"] for merge in row["merges"]})


def m1(rows: Rows) -> list[Statement]:
    """A rule other than the plain sum keeps more of what the adapters can do, each at its best strength."""
    level = shared_level(len(RULES))

    def beside(rule: str, other: str, text: str, *, is_aside: bool = False) -> Statement:
        return Statement(
            text=f"share kept of what the adapters can do, {text}",
            estimate=_advantage(rows, rule, other, level=level),
            above=0.0,
            unit=POINTS,
            is_aside=is_aside,
        )

    return [
        *(beside(rule, SUM, f"{TITLES[rule]} minus the plain sum") for rule in RULES),
        beside(SUM, MEAN, "the plain sum at its best strength minus averaging", is_aside=True),
        beside(EMR, SUM, "EMR, which is told the task, minus the plain sum", is_aside=True),
        beside(LINEAR, SUM, "PEFT's linear minus the plain sum", is_aside=True),
        beside(RANDOM, SUM, "random directions minus the plain sum", is_aside=True),
    ]


def _advantage(rows: Rows, rule: str, other: str, *, level: float) -> Estimate | None:
    """What one rule keeps less what another keeps, over tasks; each with the strength chosen for it.

    Only tasks that the set's adapter learned count. A task's value in a set is the mean over the sizes at
    which it is merged. The interval takes in what differs between sets, and the sampling of the examples,
    which all sets share.
    """
    values: dict[tuple[str, int], float] = {}
    examples: dict[str, list[NDArray[np.float64]]] = {}
    for row in _sets(rows):
        by_name: dict[str, list[NDArray[np.float64]]] = {}
        for size in sizes(row):
            first, second = chosen(row, rule, size), chosen(row, other, size)
            if first is None or second is None:
                continue
            for task in _learned(row, first["scores"]):
                worth = row["parts"][task]["score"] - row["parts"][task]["floor"]
                difference_N = np.subtract(first["scores"][task], second["scores"][task]) / worth
                by_name.setdefault(task, []).append(difference_N)
        for task, differences in by_name.items():
            stratum = f"{row['task']}, {task}"
            mean_N = np.mean(differences, axis=0)
            values[stratum, row["seed"]] = float(mean_N.mean())
            examples.setdefault(stratum, []).append(mean_N)
    strata = by_task(dict(sorted(values.items())))
    if not strata:
        return None
    shared = {}
    for stratum in strata:
        mean_N = np.mean(examples[stratum], axis=0)
        shared[stratum] = (float(mean_N.var(ddof=1)) / len(mean_N), len(mean_N) - 1)
    return stratified_mean(strata, level=level, shared=shared)


def _learned(row: Row, tasks: Iterable[str]) -> list[str]:
    """The tasks whose adapter learned something: of the others there is nothing to keep."""
    return [task for task in tasks if row["parts"][task]["learned"]]


def _sets(rows: Rows, arm: str = OWN_STARTS) -> list[Row]:
    return [row for row in rows if row["arm"] == arm and row["status"] == "ok"]


def m2(rows: Rows) -> list[Statement]:
    """A sum of adapters has intruders that none of them has, and more than random directions give."""
    level = shared_level(4)

    def of_pairs(figure: str) -> Callable[[Row], float | None]:
        def read(row: Row) -> float | None:
            counts = [each[figure] for each in row["sums"] if len(each["tasks"]) == 2]
            return math.fsum(counts) if counts else None

        return read

    def of_all(figure: str) -> Callable[[Row], float | None]:
        def read(row: Row) -> float | None:
            merge = at_strength(row, SUM, max(sizes(row), default=0), 1.0)
            return None if merge is None or "weights" not in merge else merge["weights"][figure]

        return read

    return [
        statement
        for text, read in (
            ("all adapters of a set", of_all),
            ("two adapters, over all pairs of a set", of_pairs),
        )
        for statement in _two(rows, text, read, level=level)
    ]


def _two(
    rows: Rows, text: str, read: Callable[[str], Callable[[Row], float | None]], *, level: float
) -> list[Statement]:
    """The count of a sum at full strength, and the same less that of random directions."""
    own, null = (_by_base(rows, read(figure)) for figure in ("merged_only", "null_merged_only"))
    return [
        Statement(
            text=f"intruders that no adapter has, in the sum of {text}",
            estimate=mean_count(own, level=level) if own else None,
            above=ONE_PER_RUN,
        ),
        Statement(
            text=f"the same minus those of sums in random directions, {text}",
            estimate=mean_count_difference(own, null, level=level) if own and null else None,
            above=0.0,
        ),
    ]


def _by_base(rows: Rows, figure: Callable[[Row], float | None]) -> dict[str, list[float]]:
    """A figure of every set, by base; a base with one set is left out."""
    found = {(row["task"], row["seed"]): figure(row) for row in _sets(rows)}
    return by_task({key: value for key, value in sorted(found.items()) if value is not None})


def m3(rows: Rows) -> list[Statement]:
    """A pre-flight figure says more about the forgetting of a merge than the merge's norm does."""
    level = shared_level(len(PREFLIGHT))
    asides = ("norm", *PREFLIGHT, "forgetting_of_parts")
    return [
        *(
            Statement(
                text=f"rank correlation of {_words(figure)} with the forgetting of the merge, given its norm",
                estimate=_correlation(rows, figure, given="norm", level=level),
                above=0.0,
            )
            for figure in PREFLIGHT
        ),
        *(
            Statement(
                text=f"rank correlation of {_words(figure)} with the forgetting of the merge",
                estimate=_correlation(rows, figure, level=level),
                above=0.0,
                is_aside=True,
            )
            for figure in asides
        ),
        Statement(
            text="forgetting of the sum of two or three adapters minus that of each alone",
            estimate=_mean_excess(rows, level=level),
            above=0.0,
            unit=NATS,
            is_aside=True,
        ),
    ]


def _correlation(rows: Rows, figure: str, *, given: str | None = None, level: float) -> Estimate | None:
    """Mean over sets of the correlation over the sums of a set, within sums of two and of three.

    Sums of one set share adapters, so they are not independent: the interval is over sets.
    """
    found: dict[tuple[str, int], float] = {}
    for row in _sets(rows):
        sums: Sequence[Mapping[str, Any]] = row["sums"]
        estimate = rank_correlation(
            [each[figure] for each in sums],
            [each["forgetting"] for each in sums],
            [str(len(each["tasks"])) for each in sums],
            given=None if given is None else [each[given] for each in sums],
        )
        if estimate is not None:
            found[row["task"], row["seed"]] = estimate.estimate
    strata = by_task(dict(sorted(found.items())))
    mean = stratified_mean(strata, level=level) if strata else None
    return mean if mean is None else replace(mean, low=max(-1.0, mean.low), high=min(1.0, mean.high))


def _words(figure: str) -> str:
    """A figure's name in a sentence."""
    return "merged-only intruders" if figure == "merged_only" else figure.replace("_", " ")


def _mean_excess(rows: Rows, *, level: float) -> Estimate | None:
    """What sums forget beyond what their adapters forget one by one, mean over the sums of a set."""
    strata = _by_base(
        rows,
        lambda row: float(
            np.mean([each["forgetting"] - each["forgetting_of_parts"] for each in row["sums"]])
        ),
    )
    return stratified_mean(strata, level=level) if strata else None
