"""What goes to standard output, whatever stands at its other end; notes and progress on standard error."""

from __future__ import annotations

import io
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from intruscope.errors import ResourceExhausted, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import RenderableType

    from intruscope.engine.tasks import Progress


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
        console.print(part)
    emit(text.getvalue())


def note(text: str) -> None:
    """Say something on standard error that the user should see at once."""
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def matrix_progress(verb: str, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar over matrices with the time left, on a terminal only.

    Args:
        verb: What is done to them.
        quiet: No bar.

    Yields:
        What to call for every event of the engine.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(verb),
        BarColumn(),
        TextColumn("{task.fields[count]} matrices"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", style="dim", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        rows: list[TaskID] = []

        def update(event: Progress) -> None:
            # By weight, not by count, so that the time left is right for matrices of several sizes; and the
            # row begins with what was resumed, so that it counts as done but not as speed.
            count = f"{event.num_done}/{event.num_tasks}"
            shown = printable(event.key) if event.key else ""
            if not rows:
                rows.append(
                    bar.add_task(
                        shown, total=event.weight_total, completed=int(event.weight_done), count=count
                    )
                )
            bar.update(rows[0], completed=event.weight_done, description=shown, count=count)

        yield update


@contextmanager
def stage_progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage with the time left, on a terminal only.

    Args:
        quiet: No bars.

    Yields:
        What to call with the name of a stage, what is done of it, and all there is.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        rows: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in rows:
                # What was resumed counts as done, but not as speed.
                rows[what] = bar.add_task(printable(what), total=total, completed=done)
            bar.update(rows[what], completed=done)

        yield update


@contextmanager
def bytes_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes written, on a terminal only.

    Args:
        quiet: No bar.

    Yields:
        What to call with bytes written and bytes in all.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)
