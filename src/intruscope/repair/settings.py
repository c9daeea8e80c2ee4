"""What a repair is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.options import documented, option
from intruscope.repair.interventions import INTERVENTIONS


@documented
@dataclass(frozen=True, kw_only=True)
class RepairSettings:
    """What is edited, and how it is stored; the keyword arguments of ``repair``."""

    strength: float = option(
        0.7,
        help="Fraction of each intruder's singular value to keep: 0 removes the intruder, 1 leaves it as it "
        "is.",
        minimum=0,
    )
    which: str = option(
        "top",
        help="Intruders to edit: top (one per matrix), all, or a comma-separated selection of NAME, NAME:all "
        "and NAME:0+2, where * in a name matches anything.",
        metavar="SELECTION",
    )
    control: str = option(
        "intruders",
        help="Intervention to apply: intruders is the repair itself; docs/controls.md describes the others.",
        metavar="NAME",
        choices=tuple(INTERVENTIONS),
    )
    rank: int | Literal["exact", "same"] = option(
        "exact",
        help="Rank of the written adapter: exact (large enough for every edit), same (each module keeps its "
        "rank), or a number.",
        minimum=1,
    )
    compact: bool = option(
        False, help="Raise the rank of edited modules only (PEFT's rank_pattern; some servers ignore it)."
    )
    merged: bool = option(
        False, help="Write a full checkpoint with the repaired adapter merged into the base."
    )
