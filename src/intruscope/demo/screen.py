"""The demonstration on a terminal: progress while it runs, tables at the end. Prints nothing by itself."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from intruscope.spectra.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

    from intruscope.demo.run import DemoResult
    from intruscope.progress import OnProgress, Progress


@contextmanager
def live_progress(console: Console) -> Iterator[OnProgress]:
    """Show a bar per stage; gives the function to pass to ``run_demo`` as ``on_progress``.

    Args:
        console: Where to draw. On one that is no terminal, such as a log, each stage is one line at its end.
    """
    if not console.is_terminal:
        yield lambda event: _log(console, event)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[item]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bars(*columns, console=console) as bars:
        tasks = {}

        def on_progress(event: Progress) -> None:
            """Move the bar of the event's stage, making it when the stage begins."""
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.total, item="")
            bars.update(tasks[event.stage], completed=event.done, item=_loss(event))

        yield on_progress


def _log(console: Console, event: Progress) -> None:
    """One plain line at the end of a stage."""
    if event.done == event.total:
        console.print(f"{event.stage}: done {_loss(event)}".rstrip(), markup=False, highlight=False)


def _loss(event: Progress) -> str:
    return event.item if event.item.startswith("loss") else ""  # not the name of the last matrix


def result_table(result: DemoResult) -> Table:
    """Losses, forgetting and intruders of the base and of both fine-tunes."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="One small model, fine-tuned twice (losses in nats per token)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("model", no_wrap=True)
    headings = ("\ntask\nloss", "held-out\nsource\nloss", "\n\nforgetting", "\n\nintruders", "\nby\nchance")
    for heading in (*headings, "\n\nseconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("base", f"{result.base.task:.3f}", f"{result.base.source:.3f}", "", "", "", "")
    for run in result.runs:
        table.add_row(
            run.method,
            f"{run.losses.task:.3f}",
            f"{run.losses.source:.3f}",
            f"{run.forgetting:+.3f}",
            f"{run.num_intruders} of {run.num_vectors}",
            "" if run.expected_by_chance is None else count(run.expected_by_chance),
            f"{run.seconds:.0f}",
        )
    return table


def texts_table(result: DemoResult) -> Table:
    """The texts by hash, since the losses depend on them and they vary with the Python version."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")
    table.add_column(no_wrap=True, style="dim")
    for text in result.texts:
        table.add_row(text.name, f"{text.num_tokens:,} tokens", f"sha256 {text.sha256[:12]}")
    return table
