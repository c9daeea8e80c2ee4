"""JSON from strangers: every ambiguity that Python's reader tolerates is refused here.

Duplicate keys, NaN, infinities, numbers of thousands of digits and deep nesting are all legal to
``json.loads`` or fatal to it; each of them is a :class:`MalformedInput` with the file's name.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, printable
from intruscope.weights.stored import read_whole_file

if TYPE_CHECKING:
    from pathlib import Path

_MAX_NUMBER_CHARS = 40
_MAX_CONFIG_BYTES = 64 * 2**20
_REMEDY = "download or export the file again"


class _RefusedError(ValueError):
    """Carries the fact out of the JSON hooks, which know no file name."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(
                    f"got the key '{printable(key)}' twice in one object, expected unique keys"
                )
            seen.add(key)
    return result


def _short_integer(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_CHARS:
        raise _RefusedError(f"got an integer of {len(digits)} digits, expected at most {_MAX_NUMBER_CHARS}")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _RefusedError(f"got the number {printable(digits[:20])}, expected a finite one")
    return value


def _no_constant(name: str) -> float:
    raise _RefusedError(f"got {name}, expected JSON, which has no such number")


def parse_json_object(text: bytes, *, file: Path) -> dict[str, Any]:
    """Parse one JSON object strictly.

    Args:
        text: UTF-8 bytes.
        file: Named in errors.

    Raises:
        MalformedInput: not UTF-8, not JSON, not an object, duplicate keys, a number that is not finite
            or has more than 40 digits, or nesting past the interpreter's limit.
    """
    if text.startswith(b"version https://git-lfs"):
        fact = "got a git-LFS pointer, not the file, expected JSON"
        raise MalformedInput(fact, remedy="run git lfs pull in that folder", file=file)
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_short_integer,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
    except _RefusedError as error:
        raise MalformedInput(str(error), remedy=_REMEDY, file=file) from None
    except UnicodeDecodeError as error:
        fact = f"got bytes that are not UTF-8 at position {error.start}, expected JSON"
        raise MalformedInput(fact, remedy=_REMEDY, file=file) from None
    except RecursionError:
        fact = "got JSON nested too deep, expected a few levels"
        raise MalformedInput(fact, remedy=_REMEDY, file=file) from None
    except json.JSONDecodeError as error:
        fact = f"got no valid JSON ({error.msg} at character {error.pos}), expected one JSON object"
        raise MalformedInput(fact, remedy=_REMEDY, file=file) from None
    if not isinstance(value, dict):
        fact = f"got a JSON {type(value).__name__}, expected an object"
        raise MalformedInput(fact, remedy=_REMEDY, file=file)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a configuration file strictly; at most 64 MiB.

    Raises:
        MalformedInput: as :func:`parse_json_object`, or the file is missing, too large or not a regular file.
    """
    return parse_json_object(read_whole_file(path, max_bytes=_MAX_CONFIG_BYTES), file=path)
