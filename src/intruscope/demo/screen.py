"""The demonstration on a terminal: progress while it runs, a table at the end. Prints nothing by itself."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.table import Table

    from intruscope.demo.run import DemoResult, Event


@contextmanager
def live_progress(console: Console) -> Iterator[Callable[[Event], None]]:
    """Show a bar per stage; gives the function to pass to ``run_demo`` as ``on_event``.

    Args:
        console: Where to draw; nothing moves on one that is not a terminal.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def on_event(event: Event) -> None:
            """Move the bar of the event's stage, making it when the stage begins."""
            if event.stage not in tasks:
                tasks[event.stage] = progress.add_task(event.stage, total=event.total, loss="")
            loss = "" if event.loss is None else f"loss {event.loss:.3f}"
            progress.update(tasks[event.stage], completed=event.done, loss=loss)

        yield on_event


def result_table(result: DemoResult) -> Table:
    """Losses, forgetting and intruders of the base and of both fine-tunes."""
    from rich.table import Table

    table = Table(title="One small model, fine-tuned twice (losses in nats per token)")
    table.add_column("model")
    for heading in ("task loss", "held-out source loss", "forgetting", "intruders", "seconds"):
        table.add_column(heading, justify="right")
    table.add_row("base", f"{result.base.task:.3f}", f"{result.base.source:.3f}", "", "", "")
    for run in result.runs:
        table.add_row(
            run.method,
            f"{run.losses.task:.3f}",
            f"{run.losses.source:.3f}",
            f"{run.forgetting:+.3f}",
            f"{run.num_intruders} of {run.num_vectors}",
            f"{run.seconds:.0f}",
        )
    return table
