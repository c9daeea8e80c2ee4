"""Turning intruder dimensions down: plan, check, apply, and the controls that a repair is shown beside.

``intruscope.repair(base, tuned, strength=0.7)`` gives a plan, ``plan.apply(folder)`` writes it. Knows files
through weights and adapters and verdicts through spectra; runs no model, prints nothing.
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
