"""What the engine passes around: tasks in, outcomes and progress events out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["done", "unfinished", "failed"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One independent piece of work.

    Attributes:
        key: Unique within a run; names the record in the journal.
        payload: Picklable argument of the function.
        estimated_bytes: Memory it is expected to take.
        weight: Its share of the whole work, for the time left.
    """

    key: str
    payload: Any
    estimated_bytes: int = 0
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task.

    Attributes:
        key: Of the task.
        status: ``done``; ``unfinished`` when its deadline passed; ``failed`` when its worker died twice.
        record: The function's result when done.
        reason: One clause when not done.
    """

    key: str
    status: Status
    record: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Sent whenever something happened to a task, and once before the first with all that was resumed."""

    event: Literal["resumed", "started", "done", "retried", "unfinished", "failed"]
    key: str | None
    num_done: int
    num_tasks: int
    weight_done: float
    weight_total: float
