"""The one family of exceptions, and the exit code each means on the command line.

Every message answers four questions: what (file and tensor), got and expected (the fact), and what
to do next (the remedy). Names that come from files are escaped before they are shown.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MAX_NAME_CHARS = 160


def printable(text: object) -> str:
    """Escape control, bidirectional and non-printing characters of a foreign name, and cut it short."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return shown if len(shown) <= _MAX_NAME_CHARS else shown[: _MAX_NAME_CHARS - 1] + "…"


def nearest(name: str, known: Iterable[str], *, what: str) -> str | None:
    """What was perhaps meant, as a remedy; None where nothing is like it."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=3, cutoff=0.5)
    return f"did you mean the {what} {' or '.join(found)}?" if found else None


class IntruscopeError(Exception):
    """Base of every error that Intruscope raises on purpose.

    Args:
        fact: What was got and what was expected, one clause, no full stop.
        remedy: What the reader should do next, one clause.
        file: The file or folder concerned.
        tensor: The tensor, key or field concerned.

    Attributes:
        already_reported: Another process of the same run reports it.
    """

    exit_code: ClassVar[int] = 70
    id: ClassVar[str] = "bug"
    already_reported = False

    def __init__(
        self, fact: str, *, remedy: str, file: Path | str | None = None, tensor: str | None = None
    ) -> None:
        self.fact = fact
        self.remedy = remedy
        self.file = file
        self.tensor = tensor
        super().__init__(fact)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.fact, self.remedy, self.file, self.tensor))

    def __str__(self) -> str:
        place = " > ".join(printable(part) for part in (self.file, self.tensor) if part is not None)
        return f"error[{self.id}] {place + ': ' if place else ''}{self.fact}; {self.remedy}"


def _rebuild(
    kind: type[IntruscopeError], fact: str, remedy: str, file: Path | str | None, tensor: str | None
) -> IntruscopeError:
    return kind(fact, remedy=remedy, file=file, tensor=tensor)


class UsageError(IntruscopeError, ValueError):
    """The request itself makes no sense (unknown option value, nothing to scan)."""

    exit_code = 2
    id = "usage"


class UnsafeInput(IntruscopeError, ValueError):
    """The input could run code or reach outside its folder, and was not opened."""

    exit_code = 3
    id = "unsafe"


class MalformedInput(IntruscopeError, ValueError):
    """The input is damaged, incomplete or contradicts itself."""

    exit_code = 4
    id = "malformed"


class UnsupportedFormat(MalformedInput):
    """The input is of a known kind that is not read; the message names the kind."""

    id = "unsupported"


class ShapeMismatch(MalformedInput):
    """Two tensors that belong together do not fit."""

    id = "shape"


class IncompleteResult(IntruscopeError, RuntimeError):
    """A result exists but does not cover everything that was asked."""

    exit_code = 5
    id = "incomplete"


class ResourceExhausted(IntruscopeError, RuntimeError):
    """Memory or disk does not suffice; the message carries the figure and the flag to change."""

    exit_code = 6
    id = "resources"


class OutputConflict(IntruscopeError, FileExistsError):
    """An output would overwrite an input, another result, or another run's work."""

    exit_code = 7
    id = "output"
