"""The exceptions of Intruscope, one family, each with its exit code on the command line.

A message names the file and tensor, says what is wrong (the fact) and what to do next (the remedy). Names
that come from files are escaped before they are shown.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MAX_NAME_CHARS = 160
_ALLOCATION = re.compile(
    r"(?i)can(?:'t|not) allocate memory|out of memory|tried to allocate|unable to allocate|bad_alloc"
    r"|storage size calculation overflowed"
)
_AMOUNT = re.compile(r"(?i)(?:tried|unable) to allocate ([\d.,]+ ?[kmgtpe]?i?b(?:ytes)?)\b")


def printable(text: object) -> str:
    """Escape control, bidirectional and non-printing characters of a foreign name, and truncate it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return shown if len(shown) <= _MAX_NAME_CHARS else shown[: _MAX_NAME_CHARS - 1] + "…"


def printable_text(text: str) -> str:
    """Escape what does not print, without the cut that names get: sentences may be long."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(name: str, known: Iterable[str], *, what: str) -> str | None:
    """The closest known names, as a remedy; None if nothing is similar."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=3, cutoff=0.5)
    return f"did you mean the {what} {' or '.join(found)}?" if found else None


class IntruscopeError(Exception):
    """Base of every error that Intruscope raises on purpose.

    Args:
        fact: What is wrong, one clause, no full stop.
        remedy: What to do next, one clause.
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
    """The request is invalid (an unknown option value, a model that does not exist)."""

    exit_code = 2
    id = "usage"


class UnsafeInput(IntruscopeError, ValueError):
    """The input could run code or reaches outside its folder; it was not opened."""

    exit_code = 3
    id = "unsafe"


class MalformedInput(IntruscopeError, ValueError):
    """The input is damaged, incomplete or contradicts itself."""

    exit_code = 4
    id = "malformed"


class UnsupportedFormat(MalformedInput):
    """The input is of a known kind that Intruscope does not read; the message names the kind."""

    id = "unsupported"


class ShapeMismatch(MalformedInput):
    """The shapes of two tensors that belong together do not match."""

    id = "shape"


class IncompleteResult(IntruscopeError, RuntimeError):
    """There is a result, but it does not cover everything that was requested."""

    exit_code = 5
    id = "incomplete"


class ResourceExhausted(IntruscopeError, RuntimeError):
    """Not enough memory or disk space; the message says how much was needed and which option to change."""

    exit_code = 6
    id = "resources"


class OutputConflict(IntruscopeError, FileExistsError):
    """An output would overwrite an input, another result, or another run's work."""

    exit_code = 7
    id = "output"


def readable_bytes(count: int) -> str:
    """A size for messages, in GiB or MiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.2f} MiB"


def allocation_failure(error: BaseException, *, remedy: str) -> ResourceExhausted | None:
    """The refusal that a failed allocation stands for, with the amount that was asked for.

    Python, NumPy and Arrow raise a ``MemoryError``, torch a ``RuntimeError`` that only its text tells apart.

    Args:
        error: Any exception.
        remedy: What to do next.

    Returns:
        None for every other exception.
    """
    text = str(error)
    is_torch = isinstance(error, RuntimeError) and not isinstance(error, IntruscopeError)
    if not isinstance(error, MemoryError) and not (is_torch and _ALLOCATION.search(text)):
        return None
    asked = _AMOUNT.search(text)
    fact = f"out of memory: could not allocate {_readable(asked[1])}" if asked else _without_amount(text)
    return ResourceExhausted(fact, remedy=remedy)


def _readable(amount: str) -> str:
    number, unit = re.fullmatch(r"([\d.,]+) ?(\w+)", amount).groups()  # type: ignore[union-attr]
    return readable_bytes(int(number)) if unit == "bytes" and number.isdecimal() else amount


def _without_amount(text: str) -> str:
    """Python itself does not say how much it asked for; then say how much this process has held."""
    from pathlib import Path

    status = Path("/proc/self/status")  # Linux; getrusage would count what this process was forked from
    held = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    figure = f": this process already held {int(held[1]) / 2**20:,.2f} GiB" if held else ""
    return f"out of memory{figure}" + (f" ({printable(text)})" if text else "")
