"""Intruscope: see what a fine-tune did to a model's weights.

``intruscope.scan(base, tuned)`` is the command's twin for notebooks. Nothing heavy is imported here;
names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intruscope.errors import IntruscopeError
    from intruscope.forgetting.forget import forget
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.forgetting.tasks import load_task
    from intruscope.spectra.records import ScanReport, ScanSettings
    from intruscope.spectra.scan import RunOptions, plan, scan

__all__ = [
    "ForgettingReport",
    "IntruscopeError",
    "RunOptions",
    "ScanReport",
    "ScanSettings",
    "forget",
    "load_task",
    "plan",
    "scan",
]

_HOMES = {
    "ForgettingReport": "intruscope.forgetting.records",
    "forget": "intruscope.forgetting.forget",
    "load_task": "intruscope.forgetting.tasks",
    "IntruscopeError": "intruscope.errors",
    "RunOptions": "intruscope.spectra.scan",
    "ScanReport": "intruscope.spectra.records",
    "ScanSettings": "intruscope.spectra.records",
    "plan": "intruscope.spectra.scan",
    "scan": "intruscope.spectra.scan",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
