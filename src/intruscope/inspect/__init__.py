"""Adapters on their own, without their base: spectra, ranks, scaling, and what looks wrong.

``intruscope.inspect(adapter, ...)`` returns a report. Intruder dimensions are not in it: they are defined
against the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.inspect.records import InspectReport
    from intruscope.inspect.run import inspect

__all__ = ["InspectReport", "inspect"]

_HOMES = {
    "InspectReport": "intruscope.inspect.records",
    "inspect": "intruscope.inspect.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
