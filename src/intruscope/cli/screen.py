"""What goes to standard output, whatever stands at its other end; notes and progress on standard error."""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from intruscope.errors import ResourceExhausted, printable, readable_bytes
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

_FULL_BAR = 1_000_000


def emit(text: str) -> None:
    """Write text at once.

    A reader that has left (``| head``) is no error: the exit code still reports the work.

    Raises:
        ResourceExhausted: the file that it is redirected to cannot grow.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        send_output_nowhere()
    except OSError as error:
        send_output_nowhere()
        raise ResourceExhausted(
            f"standard output could not be written ({error.strerror})",
            remedy="free some space or redirect it elsewhere",
        ) from error


def send_output_nowhere() -> None:
    """Drop what standard output still buffers: the interpreter would try again, and fail, when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def show(parts: Iterable[RenderableType], *, width: int | None = None) -> None:
    """Print renderables.

    Args:
        parts: In order.
        width: For output that is no terminal; 80 columns otherwise.

    Raises:
        ResourceExhausted: see :func:`emit`.
    """
    from rich.console import Console

    # Into a string first, so that what goes wrong at the other end is met in one place.
    text = io.StringIO()
    on_terminal = sys.stdout.isatty()
    console = Console(file=text, force_terminal=on_terminal)
    if width is not None and not on_terminal:
        console.width = width
    for part in parts:
        # A text that may not wrap, such as a command to copy, keeps its one line.
        console.print(part, soft_wrap=getattr(part, "no_wrap", None) is True)
    emit(text.getvalue())


def note(text: str) -> None:
    """Say something on standard error that the user should see at once."""
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[OnProgress]:
    """One bar per stage with the time left, on a terminal only.

    Args:
        quiet: No bars.

    Yields:
        What to pass to a call as ``on_progress``.
    """
    if quiet or not sys.stderr.isatty():
        yield ignore_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[item]}", style="dim", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        rows: dict[str, TaskID] = {}

        def update(event: Progress) -> None:
            # By work, not by count, so that the time left is right for matrices of several sizes.
            share = event.done / max(event.total, 1) if event.work_fraction is None else event.work_fraction
            if event.stage not in rows:
                # The row begins with what was resumed, so that it counts as done but not as speed.
                description = printable(event.stage)
                rows[event.stage] = bars.add_task(
                    description, total=_FULL_BAR, completed=round(_FULL_BAR * share), count="", item=""
                )
            bars.update(
                rows[event.stage],
                completed=_FULL_BAR * share,
                count=_count(event),
                item=printable(event.item) if event.item else "",
            )

        yield update


def _count(event: Progress) -> str:
    if event.unit == "bytes":
        return f"{readable_bytes(event.done)} of {readable_bytes(event.total)}"
    return f"{event.done:,}/{event.total:,} {event.unit}"
