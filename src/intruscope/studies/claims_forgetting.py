"""What would decide the paper's claims about forgetting, and about what to do: C12 to C18, C21, C23.

The bounds were set before the first runs and revised once, after an audit of what those runs had shown and
before the next ones (LOG.md, 2026-12-01, says what changed and why). Rows hold, beside ``arm``, ``task``,
``seed`` and ``status``, the figures that each function names. Forgetting is in nats per token on text that
the base never saw, accuracies are shares.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from intruscope.studies.claims_weights import FEW, ONE_PER_RUN, SAME_ACCURACY, counts_differ, share_of
from intruscope.studies.estimates import Estimate, mean_share, rank_correlation, stratified_mean
from intruscope.studies.evidence import (
    at,
    by_run,
    by_task,
    count_difference,
    count_of,
    difference_of,
    less,
    mean_of,
)
from intruscope.studies.lives import equal_fit_difference
from intruscope.studies.verdicts import NATS, PERCENT, POINTS, Statement, shared_level

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.studies.evidence import Row, Rows

WORTH_HAVING = 0.1
"""'A large drop of forgetting': a tenth of it. The paper's at strength 0.7: 9% to 33% (its table 3)."""
NO_CORRELATION = 0.5
"""What 15 models, the paper's number, just tell from none: |rho| of .51 at the 5% level."""
WEAK_CORRELATION = 0.3
"""Below it a count explains less than a tenth of the variance of ranks."""
FORGOTTEN = 0.05
"""The smallest difference in forgetting worth having, in nats per token: 5% of perplexity."""
SAME_LOSS = 0.01
"""'Equal fit': held-out losses within so many nats; also what a sweep allows an edit to cost."""
WORTH_CHOOSING = 0.1
"""How much more often than by a coin a choice must be right."""


def c12(rows: Rows) -> list[Statement]:
    """At equal fit LoRA forgets less than full fine-tuning (v3); v1 saw a U over the ranks.

    Figures: ``looks``. Two arms of one task and seed are held against each other where each first comes down
    to the lowest held-out loss that both reach; ``forgetting_at_end`` stands beside it.
    """
    level = shared_level(1)

    def at_equal_fit(arm: str, other: str) -> Estimate | None:
        values = by_task(equal_fit_difference(rows, arm, other))
        return stratified_mean(values, level=level) if values else None

    return [
        Statement(
            text="forgetting at equal held-out loss, LoRA r 8 minus full fine-tuning",
            estimate=at_equal_fit("lora_r8", "full"),
            below=0.0,
            smallest=FORGOTTEN,
            unit=NATS,
        ),
        Statement(
            text="the claim of v1: r 1 minus r 64",
            estimate=at_equal_fit("lora_r1", "lora_r64"),
            above=0.0,
            smallest=FORGOTTEN,
            is_aside=True,
            unit=NATS,
        ),
        Statement(
            text="the claim of v1: full width minus r 64",
            estimate=at_equal_fit("lora_full_width", "lora_r64"),
            above=0.0,
            smallest=FORGOTTEN,
            is_aside=True,
            unit=NATS,
        ),
        Statement(
            text="forgetting at the end of training, LoRA r 8 minus full fine-tuning",
            estimate=difference_of(rows, "forgetting_at_end", "lora_r8", "full", level=level),
            below=0.0,
            smallest=FORGOTTEN,
            is_aside=True,
            unit=NATS,
        ),
    ]


def c13(rows: Rows) -> list[Statement]:
    """A higher learning rate: more intruders and more forgetting at like accuracy.

    Arms: ``low``, ``mid``, ``high`` of LoRA r 8, and ``full_low``, ``full_high``. Like accuracy can only be
    asked of rates that both train well, so the high rate is held against the usual one; the low one, which
    may leave a short run half trained, stands beside it.
    """
    level = shared_level(3)
    counts = {arm: by_run(rows, "count", arm) for arm in ("low", "mid", "high")}

    def more_at_high(arm: str, name: str, *, is_aside: bool = False) -> list[Statement]:
        return [
            Statement(
                text=f"intruders per run, high learning rate minus {name}",
                estimate=count_difference(counts["high"], counts[arm], level=level),
                above=0.0,
                smallest=ONE_PER_RUN,
                is_aside=is_aside,
            ),
            Statement(
                text=f"forgetting, high learning rate minus {name}",
                estimate=difference_of(rows, "forgetting", "high", arm, level=level),
                above=0.0,
                smallest=FORGOTTEN,
                is_aside=is_aside,
                unit=NATS,
            ),
        ]

    return [
        *more_at_high("mid", "usual rate"),
        Statement(
            text="accuracy, high learning rate minus usual rate",
            estimate=difference_of(rows, "accuracy", "high", "mid", level=level),
            above=-SAME_ACCURACY,
            below=SAME_ACCURACY,
            unit=POINTS,
        ),
        *more_at_high("low", "low rate", is_aside=True),
        Statement(
            text="forgetting, LoRA at the high rate minus full fine-tuning at its usual rate",
            estimate=difference_of(rows, "forgetting", "high", "full_low", level=level),
            above=0.0,
            is_aside=True,
            unit=NATS,
        ),
        Statement(
            text="the control: forgetting of full fine-tuning, high rate minus low rate",
            estimate=difference_of(rows, "forgetting", "full_high", "full_low", level=level),
            above=0.0,
            is_aside=True,
            unit=NATS,
        ),
    ]


def c14(rows: Rows) -> list[Statement]:
    """The count of intruders goes with forgetting, over models of one task."""
    level = shared_level(1)
    return [
        counts_differ(rows),
        Statement(
            text="Spearman correlation of intruders and forgetting within tasks (means over seeds)",
            estimate=_correlation(rows, "count", "forgetting", level=level),
            above=0.0,
            smallest=WEAK_CORRELATION,
            missing="fewer than five models, or no intruders",
        ),
        Statement(
            text="the same, controlling for the norm of the update (partial correlation)",
            estimate=_correlation(rows, "count", "forgetting", given="update_norm", level=level),
            above=0.0,
            smallest=WEAK_CORRELATION,
            is_aside=True,
        ),
        Statement(
            text="Spearman correlation of the norm of the update and forgetting",
            estimate=_correlation(rows, "update_norm", "forgetting", level=level),
            above=0.0,
            smallest=WEAK_CORRELATION,
            is_aside=True,
        ),
    ]


def c15(rows: Rows) -> list[Statement]:
    """The count of intruders does not go with fit: with the held-out loss, of which accuracy shows little."""
    level = shared_level(1)

    def correlation(figure: str, name: str, *, is_aside: bool = False) -> Statement:
        return Statement(
            text=f"Spearman correlation of intruders and {name} within tasks (means over seeds)",
            estimate=_correlation(rows, "count", figure, bound=NO_CORRELATION, level=level),
            above=-NO_CORRELATION,
            below=NO_CORRELATION,
            is_aside=is_aside,
            missing="fewer than five models, or no intruders",
        )

    return [
        counts_differ(rows),
        correlation("held_out_loss", "held-out loss"),
        correlation("accuracy", "accuracy", is_aside=True),
    ]


def _correlation(
    rows: Rows, first: str, second: str, *, level: float, given: str | None = None, bound: float = 0.0
) -> Estimate | None:
    """Over arms within tasks; seeds are averaged, since runs of one cell are no independent models."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        names = (first, second, *([given] if given else []))
        if row["status"] == "ok" and all(row.get(name) is not None for name in names):
            cells.setdefault((row["task"], row["arm"]), []).append(row)
    if not cells:
        return None

    def means(name: str) -> list[float]:
        return [float(np.mean([row[name] for row in seeds])) for seeds in cells.values()]

    return rank_correlation(
        means(first),
        means(second),
        [task for task, _ in cells],
        given=means(given) if given else None,
        bound=bound,
        level=level,
    )


def _at(strength: float, control: str, figure: str) -> Callable[[Row], float | None]:
    """A figure of one cell of a run's interventions."""
    return at("interventions", control, f"{strength:g}", figure)


LORA = ("lora_r1", "lora_r8")


def c16(rows: Rows) -> list[Statement]:
    """Turning the top intruders to 0.7 wins much forgetting back and costs little accuracy.

    Cells: ``forgetting_share`` (the change as a share of the forgetting; negative is won back),
    ``accuracy_change``, ``forgetting_change``.
    """
    level = shared_level(3)
    edit, matched = (_at(0.7, name, "forgetting_share") for name in ("intruders", "matched_change"))
    return [
        Statement(
            text="change of forgetting at strength 0.7",
            estimate=mean_of(rows, edit, LORA, level=level),
            below=-WORTH_HAVING,
            smallest=WORTH_HAVING,
            unit=PERCENT,
        ),
        Statement(
            text="change of accuracy",
            estimate=mean_of(rows, _at(0.7, "intruders", "accuracy_change"), LORA, level=level),
            above=-SAME_ACCURACY,
            unit=POINTS,
        ),
        Statement(
            text="change of the held-out loss",
            estimate=mean_of(rows, _at(0.7, "intruders", "loss_change"), LORA, level=level),
            below=SAME_LOSS,
            unit=NATS,
        ),
        Statement(
            text="the control: change of the held-out loss when the whole update shrinks by the same norm",
            estimate=mean_of(rows, _at(0.7, "matched_change", "loss_change"), LORA, level=level),
            below=SAME_LOSS,
            is_aside=True,
            unit=NATS,
        ),
        Statement(
            text="the control: change of forgetting when the whole update shrinks by the same norm",
            estimate=mean_of(rows, matched, LORA, level=level),
            above=-WORTH_HAVING,
            is_aside=True,
            unit=PERCENT,
        ),
        Statement(
            text="the edit minus that control",
            estimate=mean_of(rows, less(edit, matched), LORA, level=level),
            below=0.0,
            is_aside=True,
            unit=PERCENT,
        ),
    ]


def c17(rows: Rows) -> list[Statement]:
    """Turning them up to 1.5: forgetting rises, accuracy and held-out loss stay."""
    level = shared_level(3)
    return [
        Statement(
            text="change of forgetting at strength 1.5",
            estimate=mean_of(rows, _at(1.5, "intruders", "forgetting_change"), LORA, level=level),
            above=0.0,
            smallest=FORGOTTEN,
            unit=NATS,
        ),
        Statement(
            text="change of accuracy",
            estimate=mean_of(rows, _at(1.5, "intruders", "accuracy_change"), LORA, level=level),
            above=-SAME_ACCURACY,
            below=SAME_ACCURACY,
            unit=POINTS,
        ),
        Statement(
            text="change of the held-out loss",
            estimate=mean_of(rows, _at(1.5, "intruders", "loss_change"), LORA, level=level),
            above=-SAME_LOSS,
            below=SAME_LOSS,
            unit=NATS,
        ),
        Statement(
            text="the control: change of forgetting when the whole update grows by the same norm",
            estimate=mean_of(rows, _at(1.5, "matched_change", "forgetting_change"), LORA, level=level),
            below=0.0,
            is_aside=True,
            unit=NATS,
        ),
    ]


def c18(rows: Rows) -> list[Statement]:
    """Shrinking the neighbour instead raises forgetting, and costs more of the fit than the edit."""
    level = shared_level(3)

    def beyond_edit(figure: str) -> Estimate | None:
        below, edit = (_at(0.7, control, figure) for control in ("neighbour_below", "intruders"))
        return mean_of(rows, less(below, edit), LORA, level=level)

    return [
        Statement(
            text="change of forgetting with the neighbour below at strength 0.7",
            estimate=mean_of(rows, _at(0.7, "neighbour_below", "forgetting_change"), LORA, level=level),
            above=0.0,
            unit=NATS,
        ),
        Statement(
            text="change of accuracy, this control minus the edit",
            estimate=beyond_edit("accuracy_change"),
            below=0.0,
            smallest=SAME_ACCURACY,
            unit=POINTS,
        ),
        Statement(
            text="change of the held-out loss, this control minus the edit",
            estimate=beyond_edit("loss_change"),
            above=0.0,
            smallest=SAME_LOSS,
            unit=NATS,
        ),
        Statement(
            text="change of forgetting with the neighbour above at strength 0.7",
            estimate=mean_of(rows, _at(0.7, "neighbour_above", "forgetting_change"), LORA, level=level),
            above=0.0,
            is_aside=True,
            unit=NATS,
        ),
    ]


def c21(rows: Rows) -> list[Statement]:
    """Of two models that fit alike the one with fewer intruders forgets less.

    All pairs of arms of one task and seed whose held-out losses are within a hundredth of a nat. (Accuracy,
    which the claim names, does not exist for text, and ties models that a loss tells apart.) A tie of counts
    is half a hit.
    """
    level = shared_level(1)
    rates = {guide: _hit_rates(rows, guide) for guide in ("count", "update_norm")}
    hits = {guide: by_task(each) for guide, each in rates.items()}
    against = by_task({key: rate - rates["update_norm"][key] for key, rate in rates["count"].items()})
    return [
        counts_differ(rows),
        Statement(
            text="share of pairs with equal fit in which the model with fewer intruders forgot less",
            estimate=mean_share(hits["count"], level=level) if hits["count"] else None,
            above=0.5,
            smallest=WORTH_CHOOSING,
            nothing=0.5,
            missing="no pairs of equal fit",
            unit=PERCENT,
        ),
        Statement(
            text="the control: share of pairs in which the model with the smaller update forgot less",
            estimate=mean_share(hits["update_norm"], level=level) if hits["update_norm"] else None,
            below=0.5,
            smallest=WORTH_CHOOSING,
            nothing=0.5,
            is_aside=True,
            unit=PERCENT,
        ),
        Statement(
            text="choosing by intruders minus choosing by size of the update",
            estimate=stratified_mean(against, level=level) if against else None,
            above=0.0,
            smallest=WORTH_CHOOSING,
            is_aside=True,
            unit=PERCENT,
        ),
    ]


def _hit_rates(rows: Rows, guide: str) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], list[float]] = {}
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok" and row.get("held_out_loss") is not None:
            groups.setdefault((row["task"], row["seed"]), []).append(row)
    for key, group in groups.items():
        for a, b in itertools.combinations(group, 2):
            far = abs(a["held_out_loss"] - b["held_out_loss"]) > SAME_LOSS
            if far or a["forgetting"] == b["forgetting"]:
                continue
            if a[guide] == b[guide]:
                hit = 0.5
            else:
                hit = float((a[guide] < b[guide]) == (a["forgetting"] < b["forgetting"]))
            found.setdefault(key, []).append(hit)
    return {key: float(np.mean(hits)) for key, hits in sorted(found.items())}


def c23(rows: Rows) -> list[Statement]:
    """Full fine-tuning at low rates has no intruders at any moment of the run.

    Figure: ``most_at_any_look``, the largest count over the looks of a run.
    """
    level = shared_level(1)
    return [
        Statement(
            text="largest number of intruders at any look, full fine-tuning at low learning rates",
            estimate=count_of(rows, "most_at_any_look", ("full_low", "full_lowest"), level=level),
            below=ONE_PER_RUN,
        ),
        Statement(
            text="share of candidates that are intruders at the end",
            estimate=share_of(rows, "count", ("full_low", "full_lowest"), level=level),
            below=FEW,
            is_aside=True,
            unit=PERCENT,
        ),
    ]
