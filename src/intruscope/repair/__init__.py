"""Turning intruder dimensions down: plan, check, apply, and the controls that a repair is shown beside.

``from intruscope.repair import repair`` is the command's twin for notebooks: ``repair(base, tuned,
strength=0.7)`` gives a plan, ``plan.apply(folder)`` writes it. Knows files through weights and adapters and
verdicts through spectra; runs no model, prints nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intruscope.repair.plan import RepairPlan, repair

__all__ = ["RepairPlan", "repair"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("intruscope.repair.plan"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
