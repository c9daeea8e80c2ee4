"""What would decide the paper's claims about weights: C1 to C11, and C22.

The bounds were set before the first runs and revised once, after an audit of what those runs had shown and
before the next ones (LOG.md, 2026-12-01, says what changed and why).

Rows hold, beside ``arm``, ``task``, ``seed`` and ``status``: ``count`` (intruders at k = 10, epsilon = 0.5),
``null_count`` (those of the same update spectrum in random directions), ``candidates`` (10 per matrix),
``counts`` (by epsilon as text, k = 10), ``count_attention``, ``count_mlp`` and their ``candidates_``,
``by_fifth`` (intruders among all vectors, by fifth of their rank), ``effective_rank``, ``accuracy``,
``forgetting``; and for trajectories the columns named there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from intruscope.studies.estimates import relative_spread, reliability, stratified_mean
from intruscope.studies.evidence import (
    at,
    by_run,
    by_task,
    cells,
    count_difference,
    count_of,
    difference_of,
    mean_of,
)
from intruscope.studies.verdicts import NATS, PERCENT, POINTS, Statement, shared_level

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.studies.estimates import Estimate
    from intruscope.studies.evidence import Arms, Figure, Row, Rows

ONE_PER_RUN = 1.0
"""'There are intruders': at least one in the whole model, in the mean of runs."""
FEW = 0.01
"""'Almost never': one candidate in a hundred."""
FEW_AT_HIGH_EPSILON = 0.05
SAME_ACCURACY = 0.01
"""'Equal accuracy': within one point."""
A_QUARTER_MORE = math.log2(1.25)
"""Two figures whose log2 ratio is smaller are about equal."""
LITTLE_GROWTH = 0.05
"""A singular value that grows by less than 5% during training hardly grows."""
LOW_RANKS = ("lora_r1", "lora_r8", "lora_r16")


def share(row: Row) -> float | None:
    """Intruders over candidates of a run."""
    return None if row.get("count") is None else row["count"] / row["candidates"]


def log_of(name: str) -> Callable[[Row], float | None]:
    """Logarithm to the base 2 of a figure, where ratios are meant; None where it is not positive."""

    def figure(row: Row) -> float | None:
        found = row.get(name)
        return math.log2(found) if found is not None and found > 0.0 else None

    return figure


def count_at(epsilon: str) -> Callable[[Row], float | None]:
    """The count of a run at another epsilon."""
    return at("counts", epsilon)


def share_of(rows: Rows, figure: Figure, arms: Arms, *, level: float) -> Estimate | None:
    """Mean over tasks of the share of candidates that intrude, as uncertain as the counts behind it are."""
    found = count_of(rows, figure, arms, level=level)
    if found is None:
        return None
    counts, candidates = (by_task(by_run(rows, each, arms)) for each in (figure, "candidates"))
    mean = float(np.mean([np.sum(counts[task]) / np.sum(candidates[task]) for task in counts]))
    per_run = float(np.mean([np.mean(candidates[task]) for task in counts]))
    reach = {name: getattr(found, name) / per_run for name in ("estimate", "low", "high", "detectable")}
    return replace(
        found,
        estimate=mean,
        low=max(0.0, mean - reach["estimate"] + reach["low"]),
        high=mean - reach["estimate"] + reach["high"],
        detectable=reach["detectable"],
    )


def some_intruders(rows: Rows, arms: Arms, figure: str = "count") -> Statement:
    """What a claim about intruders needs: some."""
    return Statement(
        text="needed: share of candidates that are intruders",
        estimate=share_of(rows, figure, arms, level=shared_level(1)),
        above=FEW,
        unit=PERCENT,
        is_needed=True,
    )


def counts_differ(rows: Rows) -> Statement:
    """What a claim about models with more and fewer intruders needs: counts that belong to the models."""
    return Statement(
        text="needed: share of the variance of counts that lies between models, not between seeds",
        estimate=reliability(cells(rows, "count"), level=shared_level(1)),
        above=0.5,
        is_needed=True,
        missing="fewer than two models with two seeds, or no intruders",
    )


def c1(rows: Rows) -> list[Statement]:
    """LoRA has intruders among the top ten; full fine-tuning almost never, also at high epsilon."""
    level = shared_level(4)
    lora = ("lora_r1", "lora_r8")
    return [
        Statement(
            text="share of candidates that are intruders, LoRA (r 1 and 8)",
            estimate=share_of(rows, "count", lora, level=level),
            above=FEW,
            unit=PERCENT,
        ),
        Statement(
            text="share of candidates that are intruders, LoRA minus full fine-tuning",
            estimate=difference_of(rows, share, lora, "full", level=level),
            above=0.0,
            smallest=FEW,
            unit=PERCENT,
        ),
        Statement(
            text="share of candidates that are intruders, full fine-tuning",
            estimate=share_of(rows, "count", "full", level=level),
            below=FEW,
            unit=PERCENT,
        ),
        Statement(
            text="the same at epsilon 0.9",
            estimate=share_of(rows, count_at("0.9"), "full", level=level),
            below=FEW_AT_HIGH_EPSILON,
            unit=PERCENT,
        ),
        Statement(
            text="intruders per LoRA run minus those expected by chance (same update spectrum, random "
            "directions)",
            estimate=mean_of(rows, _beyond_null, lora, level=level),
            above=0.0,
            smallest=ONE_PER_RUN,
            is_aside=True,
        ),
    ]


def _beyond_null(row: Row) -> float | None:
    null = row.get("null_count")
    return None if null is None else row["count"] - null


def c2(rows: Rows) -> list[Statement]:
    """Intruders up to rank 16, none at full width; the trend rises, then falls."""
    level = shared_level(4)
    counts = {arm: by_run(rows, "count", arm) for arm in ("lora_r1", "lora_r8", "lora_r64")}
    return [
        Statement(
            text="intruders per run up to rank 16",
            estimate=count_of(rows, "count", LOW_RANKS, level=level),
            above=ONE_PER_RUN,
        ),
        Statement(
            text="intruders per run at full width",
            estimate=count_of(rows, "count", "lora_full_width", level=level),
            below=ONE_PER_RUN,
        ),
        Statement(
            text="intruders per run, rank 8 minus rank 1",
            estimate=count_difference(counts["lora_r8"], counts["lora_r1"], level=level),
            above=0.0,
            smallest=ONE_PER_RUN,
        ),
        Statement(
            text="intruders per run, rank 8 minus rank 64",
            estimate=count_difference(counts["lora_r8"], counts["lora_r64"], level=level),
            above=0.0,
            smallest=ONE_PER_RUN,
        ),
    ]


def c3(rows: Rows) -> list[Statement]:
    """Full fine-tuning that moves far shows some intruders at high epsilon."""
    level = shared_level(1)
    return [
        Statement(
            text="intruders per run at epsilon 0.9, full fine-tuning at its highest learning rate",
            estimate=count_of(rows, count_at("0.9"), "full_high_rate", level=level),
            above=ONE_PER_RUN,
        ),
        Statement(
            text="the same at epsilon 0.5",
            estimate=count_of(rows, "count", "full_high_rate", level=level),
            above=ONE_PER_RUN,
            is_aside=True,
        ),
    ]


def c4(rows: Rows) -> list[Statement]:
    """Intruders sit at all ranks of singular values, and LoRA has more than full at each."""
    level = shared_level(5)

    def less_full(arm: str, place: int) -> Estimate | None:
        arms = (by_run(rows, _fifth(place), each) for each in (arm, "full"))
        return count_difference(*arms, level=level)

    names = ("first", "second", "third", "fourth", "last")
    statements = [
        Statement(
            text=f"intruders in the {name} fifth of the ranks, LoRA r 8 minus full fine-tuning",
            estimate=less_full("lora_r8", place),
            above=0.0,
            smallest=ONE_PER_RUN,
        )
        for place, name in enumerate(names)
    ]
    return [
        *statements,
        Statement(
            text="the same for r 1 in the last fifth",
            estimate=less_full("lora_r1", 4),
            above=0.0,
            is_aside=True,
        ),
    ]


def _fifth(place: int) -> Callable[[Row], float | None]:
    def figure(row: Row) -> float | None:
        found = row.get("by_fifth")
        return None if found is None else float(found[place])

    return figure


def c5(rows: Rows) -> list[Statement]:
    """During training an intruder rises in rank and singular value (and turns away from the base).

    Rows: ``rank_change`` (places; negative is up), ``log_growth`` of the singular value and
    ``alignment_change``, means over a run's intruders from the first look that saw them to the last.
    """
    level = shared_level(2)
    return [
        Statement(
            text="change in rank of an intruder's singular value (negative: towards the top)",
            estimate=mean_of(rows, "rank_change", "lora_r8", level=level),
            below=0.0,
            smallest=1.0,
        ),
        Statement(
            text="natural logarithm of its growth factor",
            estimate=mean_of(rows, "log_growth", "lora_r8", level=level),
            above=0.0,
            smallest=LITTLE_GROWTH,
        ),
        # They are followed because they end below epsilon: what is chosen by its end has fallen.
        Statement(
            text="change of its alignment with the base",
            estimate=mean_of(rows, "alignment_change", "lora_r8", level=level),
            below=0.0,
            is_aside=True,
        ),
    ]


def c6(rows: Rows) -> list[Statement]:
    """The count grows with the data at rank 8; at rank 1 it converges.

    Arms: ``r8_quarter``, ``r8_half``, ``r8_whole`` and the same of rank 1.
    """
    level = shared_level(2)

    def last_doubling(first: str, second: str) -> dict[str, list[float]]:
        before, after = by_run(rows, "count", first), by_run(rows, "count", second)
        both = before.keys() & after.keys()
        return by_task({key: math.log2((after[key] + 0.5) / (before[key] + 0.5)) for key in sorted(both)})

    doubling = last_doubling("r1_half", "r1_whole")
    whole, quarter = (by_run(rows, "count", arm) for arm in ("r8_whole", "r8_quarter"))
    return [
        Statement(
            text="intruders per run at rank 8, all data minus a quarter",
            estimate=count_difference(whole, quarter, level=level),
            above=0.0,
            smallest=ONE_PER_RUN,
        ),
        Statement(
            text="log2 ratio of intruders at rank 1 over the last doubling of the data",
            estimate=stratified_mean(doubling, level=level) if doubling else None,
            above=-A_QUARTER_MORE,
            below=A_QUARTER_MORE,
        ),
    ]


def c7(rows: Rows) -> list[Statement]:
    """Alpha 8, not 2r: intruders at all ranks, lower effective rank, more forgetting, equal accuracy."""
    level = shared_level(4)
    fixed, scaled = ("alpha8_r16", "alpha8_r64"), ("alpha2r_r16", "alpha2r_r64")
    return [
        Statement(
            text="intruders per run at alpha 8 and rank 64",
            estimate=count_of(rows, "count", "alpha8_r64", level=level),
            above=ONE_PER_RUN,
        ),
        Statement(
            text="effective rank, alpha 8 minus alpha 2r",
            estimate=difference_of(rows, "effective_rank", fixed, scaled, level=level),
            below=0.0,
        ),
        Statement(
            text="log2 ratio of forgetting, alpha 8 to alpha 2r",
            estimate=difference_of(rows, log_of("forgetting"), fixed, scaled, level=level),
            above=0.0,
            smallest=A_QUARTER_MORE,
            missing="too few runs that forgot",
        ),
        Statement(
            text="accuracy, alpha 8 minus alpha 2r",
            estimate=difference_of(rows, "accuracy", fixed, scaled, level=level),
            above=-SAME_ACCURACY,
            below=SAME_ACCURACY,
            unit=POINTS,
        ),
    ]


def c8(rows: Rows) -> list[Statement]:
    """The update of full fine-tuning has far the higher effective rank; of full-width LoRA alpha decides."""
    level = shared_level(3)

    return [
        *(
            Statement(
                text=f"log2 ratio of effective ranks, full fine-tuning to LoRA {name}",
                estimate=difference_of(rows, log_of("effective_rank"), "full", arm, level=level),
                above=1.0,
            )
            for arm, name in (("lora_r64", "r 64"), ("lora_full_width", "at full width"))
        ),
        Statement(
            text="effective rank of full-width LoRA, alpha 2r minus alpha 8",
            estimate=difference_of(
                rows, "effective_rank", "lora_full_width", "alpha8_full_width", level=level
            ),
            above=0.0,
        ),
    ]


def c9(rows: Rows) -> list[Statement]:
    """Training B alone sharply lowers the number of intruders: to less than half."""
    level = shared_level(1)
    alone, both = (by_run(rows, "count", arm) for arm in ("b_only", "lora_r8"))
    return [
        Statement(
            text="intruders per run, training only B minus half of training both",
            estimate=count_difference(alone, both, times=0.5, level=level),
            below=0.0,
        ),
        Statement(
            text="forgetting, training only B minus training both",
            estimate=difference_of(rows, "forgetting", "b_only", "lora_r8", level=level),
            below=0.0,
            unit=NATS,
            is_aside=True,
        ),
    ]


def c10(rows: Rows) -> list[Statement]:
    """The seed hardly changes the count: beside what sets models apart, a tenth of the variance at most.

    A spread that is small beside the mean, which was asked for first, cannot be had: counts of rare things
    spread by their square root if nothing but chance is at work.
    """
    values = by_task(by_run(rows, "count", "lora_r8"))
    return [
        some_intruders(rows, "lora_r8"),
        Statement(
            text="share of the variance of counts that lies between models, not between seeds",
            estimate=reliability(cells(rows, "count"), level=shared_level(1)),
            above=0.9,
            missing="fewer than two models with two seeds, or no intruders",
        ),
        Statement(
            text="standard deviation of the number of intruders of rank 8 over seeds, as a share of the mean",
            estimate=relative_spread(values, level=shared_level(1)) if values else None,
            below=0.25,
            is_aside=True,
            missing="no runs, or no intruders",
        ),
    ]


def c11(rows: Rows) -> list[Statement]:
    """AdaLoRA, LoRA+, PiSSA and VeRA all show intruders."""
    level = shared_level(4)
    names = {"adalora": "AdaLoRA", "lora_plus": "LoRA+", "pissa": "PiSSA", "vera": "VeRA"}
    return [
        Statement(
            text=f"intruders per run of {name}",
            estimate=count_of(rows, "count", arm, level=level),
            above=ONE_PER_RUN,
        )
        for arm, name in names.items()
    ]


def c22(rows: Rows) -> list[Statement]:
    """No systematic difference between attention and MLP: rates of intruders within a factor of two."""
    arms = ("lora_r1", "lora_r8")

    def log_ratio(row: Row) -> float | None:
        if row.get("count_attention") is None:
            return None
        parts = ("attention", "mlp")
        candidates = [row[f"candidates_{part}"] for part in parts]
        # One more intruder, shared out by candidates: without any the ratio is 1.
        rates = [
            (row[f"count_{part}"] + each / sum(candidates)) / each
            for part, each in zip(parts, candidates, strict=True)
        ]
        return math.log2(rates[0] / rates[1])

    return [
        some_intruders(rows, arms),
        Statement(
            text="log2 ratio of intruder rates, attention to MLP",
            estimate=mean_of(rows, log_ratio, arms, level=shared_level(1)),
            above=-1.0,
            below=1.0,
        ),
    ]
