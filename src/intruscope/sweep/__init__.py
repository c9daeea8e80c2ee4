"""Strengths and controls on one loaded pair: what a repair wins back and costs, and what a mere shrink does.

``from intruscope.sweep import sweep`` is the library call behind ``intruscope sweep``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intruscope.sweep.measure import MeasureOptions, sweep
    from intruscope.sweep.records import SweepReport, SweepSettings

__all__ = ["MeasureOptions", "SweepReport", "SweepSettings", "sweep"]

_HOMES = {"SweepReport": "records", "SweepSettings": "records"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"intruscope.sweep.{_HOMES.get(name, 'measure')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
