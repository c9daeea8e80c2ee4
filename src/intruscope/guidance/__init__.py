"""Adapter guidance: base and tuned model predict together while text is generated; no weight is changed.

``intruscope.guide(base, tuned, ...)`` is the library's form of the command. :class:`AdapterGuidance` is the
processor for the ``generate`` of transformers. Losses of guidance are measured in ``forgetting``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import lazy_names

if TYPE_CHECKING:
    from intruscope.guidance.processor import AdapterGuidance
    from intruscope.guidance.records import Completion, GuideReport
    from intruscope.guidance.run import guide
    from intruscope.guidance.settings import GuideSettings

__all__ = [
    "AdapterGuidance",
    "Completion",
    "GuideReport",
    "GuideSettings",
    "guide",
]

_HOMES = {
    "AdapterGuidance": "intruscope.guidance.processor",
    "Completion": "intruscope.guidance.records",
    "GuideReport": "intruscope.guidance.records",
    "GuideSettings": "intruscope.guidance.settings",
    "guide": "intruscope.guidance.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
