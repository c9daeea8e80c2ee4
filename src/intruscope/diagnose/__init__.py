"""One command for "did I break it, and what now?": a scan, the forgetting and the best fixes in one report.

``intruscope.diagnose(base, tuned, text=...)`` is the library's form of the command. This folder composes
other verbs; it computes nothing of its own and prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.diagnose.records import DiagnoseReport
    from intruscope.diagnose.run import diagnose
    from intruscope.diagnose.settings import DiagnoseSettings

__all__ = [
    "DiagnoseReport",
    "DiagnoseSettings",
    "diagnose",
]

_HOMES = {
    "DiagnoseReport": "intruscope.diagnose.records",
    "DiagnoseSettings": "intruscope.diagnose.settings",
    "diagnose": "intruscope.diagnose.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
