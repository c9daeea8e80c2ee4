"""Training on transformers' Trainer, and the watch over anybody's training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intruscope.train.watch import IntruderWatch

__all__ = ["IntruderWatch"]


def __getattr__(name: str) -> Any:
    if name == "IntruderWatch":
        from intruscope.train.watch import IntruderWatch

        return IntruderWatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
