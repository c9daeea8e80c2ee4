"""What the engine passes around: tasks in, outcomes and events out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from intruscope.progress import OnProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

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
class TaskEvent:
    """Sent whenever something happened to a task, and once before the first with all that was resumed."""

    event: Literal["resumed", "started", "done", "retried", "unfinished", "failed"]
    key: str | None
    num_done: int
    num_tasks: int
    weight_done: float
    weight_total: float


def reporting(on_progress: OnProgress, stage: str, unit: str) -> Callable[[TaskEvent], None]:
    """What to call with a run's events so that they are reported as the progress of one stage."""

    def report(event: TaskEvent) -> None:
        on_progress(
            Progress(
                stage=stage,
                done=event.num_done,
                total=event.num_tasks,
                unit=unit,
                item=event.key or "",
                work_fraction=event.weight_done / event.weight_total if event.weight_total else None,
            )
        )

    return report
