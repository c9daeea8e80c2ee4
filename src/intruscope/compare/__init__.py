"""How several fine-tunes of one base relate, and what merging them would do; with numbers and controls only.

``intruscope.compare(base, a, b)`` or ``intruscope.compare(adapter_a, adapter_b)`` is the library's form of
the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.compare.records import CompareReport
    from intruscope.compare.run import compare
    from intruscope.compare.settings import CompareSettings

__all__ = [
    "CompareReport",
    "CompareSettings",
    "compare",
]

_HOMES = {
    "CompareReport": "intruscope.compare.records",
    "CompareSettings": "intruscope.compare.settings",
    "compare": "intruscope.compare.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
