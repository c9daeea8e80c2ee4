"""JSON from untrusted files: every ambiguity that Python's parser tolerates is refused here.

Duplicate keys, NaN, infinities, numbers of thousands of digits and deep nesting are either accepted by
``json.loads`` or crash it; each of them is a :class:`MalformedInput` with the file's name.
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
                raise _RefusedError(f"the key '{printable(key)}' occurs twice in one object")
            seen.add(key)
    return result


def _short_integer(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_CHARS:
        raise _RefusedError(f"an integer has {len(digits):,} digits; at most {_MAX_NUMBER_CHARS} are read")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {printable(digits[:20])} is not finite")
    return value


def _no_constant(name: str) -> float:
    raise _RefusedError(f"{name} is not a JSON number")


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
        fact = "this is a git-LFS pointer, not the file itself"
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
        fact = f"the file is not UTF-8 (byte {error.start})"
        raise MalformedInput(fact, remedy=_REMEDY, file=file) from None
    except RecursionError:
        fact = "the JSON is nested too deeply"
        raise MalformedInput(fact, remedy=_REMEDY, file=file) from None
    except json.JSONDecodeError as error:
        fact = f"the file is not valid JSON ({error.msg} at character {error.pos})"
        raise MalformedInput(fact, remedy=_REMEDY, file=file) from None
    if not isinstance(value, dict):
        fact = f"the JSON is a {type(value).__name__}, not an object"
        raise MalformedInput(fact, remedy=_REMEDY, file=file)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a configuration file strictly; at most 64 MiB.

    Raises:
        MalformedInput: as :func:`parse_json_object`, or the file is missing, too large or not a regular file.
    """
    return parse_json_object(read_whole_file(path, max_bytes=_MAX_CONFIG_BYTES), file=path)
