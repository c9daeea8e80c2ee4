"""A full fine-tune as a low-rank adapter of PEFT, with ranks chosen per matrix and its error stated.

``intruscope.extract(base, tuned, rank=16)`` returns a plan, and ``plan.apply(folder)`` writes it. Runs no
model and prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.extract.linear_network import Construction, construct_adapters
    from intruscope.extract.plan import ExtractPlan, extract

__all__ = [
    "Construction",
    "ExtractPlan",
    "construct_adapters",
    "extract",
]

_HOMES = {
    "Construction": "intruscope.extract.linear_network",
    "ExtractPlan": "intruscope.extract.plan",
    "construct_adapters": "intruscope.extract.linear_network",
    "extract": "intruscope.extract.plan",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
