"""A full fine-tune as a low-rank adapter of PEFT, with ranks chosen per matrix and its error stated.

In a notebook, ``from intruscope.extract import extract``: ``extract(base, tuned, rank=16)`` returns a plan,
and ``plan.apply(folder)`` writes it. Runs no model and prints nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intruscope.extract.chain import Construction, construct_chain
    from intruscope.extract.plan import ExtractPlan, extract

__all__ = ["Construction", "ExtractPlan", "construct_chain", "extract"]

_PLACES = {"Construction": "chain", "construct_chain": "chain", "ExtractPlan": "plan", "extract": "plan"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"intruscope.extract.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
