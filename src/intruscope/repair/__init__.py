"""Turning intruder dimensions down, and the controls that a repair is compared with: plan, check, apply.

In a notebook, ``from intruscope.repair import repair``: ``repair(base, tuned, strength=0.7)`` returns a plan,
and ``plan.apply(folder)`` writes it. Runs no model and prints nothing.
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
