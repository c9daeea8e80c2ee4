"""What would decide the paper's claims about training on task after task: C19, C20, C24.

A row is one chain: ``arm`` (``full``, ``lora_r1``, ``lora_r8``, ``lora_r64``, or ``alpha8_r8`` and so on),
``seed``, ``status``, and one ``task`` name for all, since the tasks of a chain are one sequence. Figures:
``lost`` (mean over all tasks but the last of the best accuracy up to then less that after the last task;
Chaudhry et al. 2018), ``count_first`` and ``count_last`` (intruders against the original base after the
first and the last task), ``candidates``, ``first_tasks_gain`` (accuracy on the first two tasks after the
last, less that of the untrained base).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.studies.claims_weights import FEW, ONE_PER_RUN, SAME_ACCURACY, share_of, some_intruders
from intruscope.studies.evidence import by_run, count_difference, difference_of, mean_of
from intruscope.studies.verdicts import PERCENT, POINTS, Statement, shared_level

if TYPE_CHECKING:
    from intruscope.studies.evidence import Rows


def c19(rows: Rows) -> list[Statement]:
    """LoRA loses earlier tasks faster than full fine-tuning, low ranks most."""
    level = shared_level(2)
    return [
        some_intruders(rows, "lora_r8", "count_last"),
        Statement(
            text="accuracy lost on earlier tasks, LoRA r 8 minus full fine-tuning",
            estimate=difference_of(rows, "lost", "lora_r8", "full", level=level),
            above=0.0,
            smallest=SAME_ACCURACY,
            unit=POINTS,
        ),
        Statement(
            text="accuracy lost on earlier tasks, r 1 minus r 64",
            estimate=difference_of(rows, "lost", "lora_r1", "lora_r64", level=level),
            above=0.0,
            smallest=SAME_ACCURACY,
            unit=POINTS,
        ),
    ]


def c20(rows: Rows) -> list[Statement]:
    """LoRA gathers intruders task by task; full fine-tuning keeps the base's vectors."""
    level = shared_level(2)
    last, first = (by_run(rows, figure, "lora_r8") for figure in ("count_last", "count_first"))
    return [
        some_intruders(rows, "lora_r8", "count_last"),
        Statement(
            text="intruders of LoRA r 8, after the last task minus after the first",
            estimate=count_difference(last, first, level=level),
            above=ONE_PER_RUN,
        ),
        Statement(
            text="share of candidates that are intruders after the last task, full fine-tuning",
            estimate=share_of(rows, "count_last", "full", level=level),
            below=FEW,
            unit=PERCENT,
        ),
    ]


def c24(rows: Rows) -> list[Statement]:
    """At alpha 8 every rank ends below the untrained base on the first tasks."""
    ranks = (1, 8, 64)
    level = shared_level(len(ranks))
    return [
        Statement(
            text=f"accuracy on the first two tasks at the end minus the untrained base's, r {rank}",
            estimate=mean_of(rows, "first_tasks_gain", f"alpha8_r{rank}", level=level),
            below=0.0,
            smallest=SAME_ACCURACY,
            unit=POINTS,
        )
        for rank in ranks
    ]
