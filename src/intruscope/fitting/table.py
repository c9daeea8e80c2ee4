"""The fitted fixes by name, beside the interventions that need no data."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.errors import UsageError, printable
from intruscope.repair.interventions import INTERVENTIONS, Intervention

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class FittedFix:
    """A fix whose numbers are trained on examples of the task and on general text.

    Attributes:
        name: On the command line and in JSON.
        title: In tables, pages and pictures.
        action: In sentences: "fitting one factor per direction".
        explanation: What it does, in one or two sentences, for pages.
        learning_rate: Of Adam; it falls linearly to zero.
        role: Always ``fit``; see :attr:`intruscope.repair.interventions.Intervention.role`.
    """

    name: str
    title: str
    action: str
    explanation: str
    learning_rate: float
    role: Literal["fit"] = "fit"


FITS: dict[str, FittedFix] = {
    each.name: each
    for each in (
        FittedFix(
            name="fitted",
            title="one fitted factor per direction",
            action="fitting one factor per direction",
            explanation="Every singular direction of each update has a factor, which is fitted to examples "
            "of the task and general text. Of an update that is not low-rank, the largest directions have "
            "their own factors and the rest shares one.",
            learning_rate=0.03,
        ),
        FittedFix(
            name="fitted_matrix",
            title="one fitted factor per matrix",
            action="fitting one factor per matrix",
            explanation="The update of each matrix has one factor, which is fitted to examples of the task "
            "and general text.",
            learning_rate=0.03,
        ),
        FittedFix(
            name="replay",
            title="replay: adapter trained on",
            action="training the adapter on",
            explanation="The adapter's own factors are trained for a few more steps on examples of the task "
            "and general text. This is no edit of what is there, but the figure that an edit has to beat.",
            learning_rate=2e-3,
        ),
    )
}
"""Every fitted fix by name, from few trained numbers to many."""


@dataclass(frozen=True, kw_only=True)
class DecodingFix:
    """A fix of what the models predict, which changes no weight.

    Attributes:
        name: On the command line and in JSON.
        title: In tables, pages and pictures.
        action: In sentences.
        explanation: What it does, in one or two sentences, for pages.
        role: Always ``decoding``; see :attr:`intruscope.repair.interventions.Intervention.role`.
    """

    name: str
    title: str
    action: str
    explanation: str
    role: Literal["decoding"] = "decoding"


GUIDANCE = DecodingFix(
    name="guidance",
    title="guidance by base and tuned model",
    action="guidance by base and tuned model",
    explanation="No weight is changed: base and tuned model predict together, with log p = log p_base + "
    "gamma (log p_tuned − log p_base). The strength is gamma. Every token costs a step of both models.",
)

Fix = Intervention | FittedFix | DecodingFix
FIXES: Mapping[str, Fix] = ChainMap(
    FITS,  # type: ignore[arg-type]
    {GUIDANCE.name: GUIDANCE},
    INTERVENTIONS,  # type: ignore[arg-type]
)
"""Everything that a sweep compares: interventions and guidance at several strengths, fits at several
weights."""


def find_fix(name: str) -> Fix:
    """Look a fix up in :data:`FIXES`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in FIXES:
        raise UsageError(
            f"there is no control named '{printable(name)}'", remedy=f"choose from {', '.join(FIXES)}"
        )
    return FIXES[name]
