"""What would decide whether a fit turns intruders down more than other directions of the same size: C25.

The paper turns intruders down by decree. A fit of one factor per direction of the update
(:mod:`intruscope.fitting`) chooses for itself what to turn down, to keep the task and win back the base.
Every bound was set before the runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.studies.evidence import at, mean_of
from intruscope.studies.verdicts import PERCENT, Statement, shared_level

if TYPE_CHECKING:
    from intruscope.studies.evidence import Figure, Rows

ARMS = ("lora_r8",)
"""Rank 1 has one direction per matrix, and at mini too few for strata."""
WEIGHT = 1.0
"""The weight of the loss on text. With it, the prototype's fit won back two thirds of the forgetting."""
SMALLEST_DIFFERENCE = 0.05
"""Of two factors: a twentieth of a direction."""
SMALLEST_CORRELATION = 0.1
TURNED_DOWN = 0.95
"""A fit whose factors stay above it on average turns nothing down, and so says nothing about intruders."""


def c25(rows: Rows) -> list[Statement]:
    """A fit turns intruders down more than other directions of the same size.

    Figures, in ``fits`` by weight: ``difference`` and ``correlation`` of the run's
    :class:`intruscope.fitting.records.DirectionTest`, ``mean_factor`` over its directions, and
    ``forgetting_share`` (the change as a share of the forgetting; negative is won back).
    """
    level = shared_level(2)
    return [
        Statement(
            text="mean factor of the fit",
            estimate=mean_of(rows, _at("mean_factor"), ARMS, level=level),
            below=TURNED_DOWN,
            is_needed=True,
        ),
        Statement(
            text="factor of directions in the intruders minus that of others of the same size",
            estimate=mean_of(rows, _at("difference"), ARMS, level=level),
            below=0.0,
            smallest=SMALLEST_DIFFERENCE,
        ),
        Statement(
            text="rank correlation of the factor and the share in the intruders, within strata of size",
            estimate=mean_of(rows, _at("correlation"), ARMS, level=level),
            below=0.0,
            smallest=SMALLEST_CORRELATION,
        ),
        Statement(
            text="change of forgetting by the fit",
            estimate=mean_of(rows, _at("forgetting_share"), ARMS, level=level),
            below=0.0,
            is_aside=True,
            unit=PERCENT,
        ),
    ]


def _at(figure: str) -> Figure:
    return at("fits", f"{WEIGHT:g}", figure)
