"""Several fine-tunes of one base as one: spaces in which updates are written, rules that combine them.

``intruscope.merge(base, first, second, rule="ties")`` returns a plan, and ``plan.apply(folder)`` writes it.
Runs no model and prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.merge.plan import MergePlan, merge
    from intruscope.merge.records import MergeReport
    from intruscope.merge.settings import MergeSettings

__all__ = [
    "MergePlan",
    "MergeReport",
    "MergeSettings",
    "merge",
]

_HOMES = {
    "MergePlan": "intruscope.merge.plan",
    "MergeReport": "intruscope.merge.records",
    "MergeSettings": "intruscope.merge.settings",
    "merge": "intruscope.merge.plan",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
