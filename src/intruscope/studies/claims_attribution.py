"""What would decide whether the intruders' part of an update forgets more than it learns: C26.

The paper removes intruders and looks at what is left. An attribution (:mod:`intruscope.attribution`) removes
nothing: forgetting and gain are split exactly over the parts of the update. Every bound was set before the
runs, but after pilots on one base, which disagreed (LOG.md, 2026-12-01).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.studies.evidence import at, less, mean_of
from intruscope.studies.verdicts import PERCENT, Statement, shared_level

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.studies.evidence import Row, Rows

ARMS = ("lora_r8", "lora_r16")
SMALLEST_EXCESS = 0.1
"""A tenth of what a part weighs: with half of the squared norm, five points between the two shares."""
FEWEST_INTRUDERS = 0.05
"""If the intruders' span holds less of the squared norm of the update, its other shares say nothing."""
INTRUDERS, OTHERS = "intruders", "other top vectors"


def c26(rows: Rows) -> list[Statement]:
    """The intruders' part of an update forgets more than it learns, and more so than other top vectors.

    Figures, in ``where`` by span: ``norm_share``, ``forgetting_share`` and ``gain_share`` of
    :class:`intruscope.forgetting.where.SpanShare`. A run whose parts do not add up to what was measured has
    none of them. Shares are compared by their difference over the share of the squared norm, which unlike a
    ratio is defined where a share is zero or negative.
    """
    level = shared_level(2)
    return [
        Statement(
            text="share of the squared norm in the intruders' span",
            estimate=mean_of(rows, _of(INTRUDERS, "norm_share"), ARMS, level=level),
            above=FEWEST_INTRUDERS,
            is_needed=True,
            unit=PERCENT,
        ),
        Statement(
            text="share of forgetting less that of the gain, over that of the squared norm, of the intruders",
            estimate=mean_of(rows, _excess(INTRUDERS), ARMS, level=level),
            above=0.0,
            smallest=SMALLEST_EXCESS,
        ),
        Statement(
            text="the same of the intruders minus that of the other top vectors",
            estimate=mean_of(rows, less(_excess(INTRUDERS), _excess(OTHERS)), ARMS, level=level),
            above=0.0,
            smallest=SMALLEST_EXCESS,
        ),
        Statement(
            text="share of forgetting in the intruders' span",
            estimate=mean_of(rows, _of(INTRUDERS, "forgetting_share"), ARMS, level=level),
            is_aside=True,
            unit=PERCENT,
        ),
    ]


def _of(span: str, figure: str) -> Callable[[Row], float | None]:
    return at("where", span, figure)


def _excess(span: str) -> Callable[[Row], float | None]:
    norm, forgetting, gain = (_of(span, f"{name}_share") for name in ("norm", "forgetting", "gain"))

    def value(row: Row) -> float | None:
        weight, forgotten, gained = norm(row), forgetting(row), gain(row)
        return None if not weight or forgotten is None or gained is None else (forgotten - gained) / weight

    return value
