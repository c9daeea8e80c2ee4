"""How a fix is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.options import check_options, documented, option

WEIGHTS = (0.1, 0.3, 1.0, 3.0)
General = Literal["loss", "kl"]


@documented
@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long a fix is fitted, and what pulls it towards the base; everything here can change a figure."""

    fit_steps: int = option(80, help="Steps of Adam per fit.", minimum=1)
    fit_tokens: int = option(
        512, help="Tokens of the task and tokens of text in each step of a fit.", minimum=2
    )
    general: General = option(
        "loss",
        help="What a fit lowers on text: loss (of the text itself), or kl (the distance from the base's "
        "predictions, for text unlike that of pretraining).",
    )

    def __post_init__(self) -> None:
        check_options(self)
