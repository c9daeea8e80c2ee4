"""Turning intruder dimensions down, and the controls that a repair is compared with: plan, check, apply.

``intruscope.repair(base, tuned, strength=0.7)`` returns a plan, and ``plan.apply(folder)`` writes it. Runs
no model and prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.repair.plan import RepairPlan, repair

__all__ = [
    "RepairPlan",
    "repair",
]

_HOMES = {
    "RepairPlan": "intruscope.repair.plan",
    "repair": "intruscope.repair.plan",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
