"""Strengths and controls on one loaded pair: what a repair wins back and costs, and what a mere shrink does.

``intruscope.sweep(base, tuned, ...)`` is the library's form of the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.sweep.measure import sweep
    from intruscope.sweep.records import SweepReport, SweepSettings
    from intruscope.sweep.settings import MeasureOptions

__all__ = [
    "MeasureOptions",
    "SweepReport",
    "SweepSettings",
    "sweep",
]

_HOMES = {
    "MeasureOptions": "intruscope.sweep.settings",
    "SweepReport": "intruscope.sweep.records",
    "SweepSettings": "intruscope.sweep.records",
    "sweep": "intruscope.sweep.measure",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
