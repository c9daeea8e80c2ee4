"""How a long call says how far it is: one record, and one type of callback, for the whole library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a call is: ``done`` of ``total`` units of one stage.

    Every call with an ``on_progress`` argument calls it with these, in the calling process. Within a stage
    ``done`` never falls, and a stage that runs to its end closes with ``done == total``. What a resumed call
    finds finished counts as done.

    Attributes:
        stage: Name of the stage, such as ``scanning`` or ``writing``. Stages follow one another.
        done: Number of finished units.
        total: Number of units in the stage.
        unit: What is counted, in the plural: ``matrices``, ``tokens``, ``steps``, ``bytes`` ...
        item: The unit that the call is working on, or the latest figure; often empty.
        work_fraction: Share of the stage's work that is done, where units differ in size; None if they do
            not. A better guide to the time left than ``done / total``.
    """

    stage: str
    done: int
    total: int
    unit: str
    item: str = ""
    work_fraction: float | None = None


OnProgress = Callable[[Progress], None]
"""What every ``on_progress`` argument takes."""


def ignore_progress(_: Progress) -> None:
    """The callback of a caller who does not ask for progress."""
