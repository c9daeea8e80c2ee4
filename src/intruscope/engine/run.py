"""Tasks through an executor, each result journaled before it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from intruscope.engine.tasks import Outcome, Task, TaskEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.engine.executors import Executor
    from intruscope.engine.journal import Journal


def run_tasks(
    tasks: Sequence[Task],
    executor: Executor,
    *,
    journal: Journal | None = None,
    on_event: Callable[[TaskEvent], None] = lambda _: None,
) -> list[Outcome]:
    """Run the tasks that are not in the journal yet, and return all outcomes in the order of the tasks.

    A record from the journal is the same plain data as one that was just computed, so a resumed run and an
    uninterrupted one give equal results. Tasks that did not finish are not journaled: the next run tries them
    again.

    Args:
        tasks: With unique keys.
        executor: Where they run; always closed on return.
        journal: An open journal; None to keep nothing.
        on_event: Called in this process for every event.

    Raises:
        Exception: whatever the function raised; the journal keeps what was finished before.
    """
    records = dict(journal.records) if journal is not None else {}
    outcomes = {
        task.key: Outcome(key=task.key, status="done", record=records[task.key])
        for task in tasks
        if task.key in records
    }
    weights = {task.key: task.weight for task in tasks}
    total = sum(weights.values())
    weight_done = sum(weights[key] for key in outcomes)

    def report(event: str, key: str | None) -> None:
        on_event(
            TaskEvent(
                event=cast("Literal['resumed', 'started', 'done', 'retried', 'unfinished', 'failed']", event),
                key=key,
                num_done=len(outcomes),
                num_tasks=len(tasks),
                weight_done=weight_done,
                weight_total=total,
            )
        )

    try:
        report("resumed", None)
        missing = [task for task in tasks if task.key not in outcomes]
        for kind, key, detail in executor.run(missing) if missing else ():
            if kind == "done":
                if journal is not None:
                    journal.append(key, detail)
                    detail = journal.records[key]
                outcomes[key] = Outcome(key=key, status="done", record=detail)
            elif kind in {"unfinished", "failed"}:
                status: Literal["unfinished", "failed"] = "unfinished" if kind == "unfinished" else "failed"
                outcomes[key] = Outcome(key=key, status=status, reason=detail)
            if key in outcomes:
                weight_done += weights[key]
            report(kind, key)
    finally:
        executor.close()
    return [outcomes[task.key] for task in tasks]
