"""What goes to standard output, whatever stands at its other end."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from intruscope.errors import ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


def emit(text: str) -> None:
    """Write text at once.

    A reader that has left (``| head``) is no error: the exit code still tells of the work.

    Raises:
        ResourceExhausted: there is no room where it is redirected to.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
    except OSError as error:
        _to_nowhere()
        raise ResourceExhausted(
            f"standard output could not be written ({error.strerror}), expected room",
            remedy="free some space or send it elsewhere",
        ) from error


def _to_nowhere() -> None:
    """What is still buffered must not be tried again, and fail again, when the interpreter leaves."""
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
