"""Records as plain data (what JSON can hold) and back, by their type hints alone."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

BASE64: Mapping[str, bool] = {"base64": True}
"""Metadata of a field with thousands of numbers from 0 to 255: one string in JSON, not a line for each."""


def plain(value: Any) -> Any:
    """Lay records out as dicts and tuples as lists; everything else stays as it is.

    Unlike ``dataclasses.asdict`` it copies no leaf, so that thousands of numbers cost little.
    """
    if is_dataclass(value):
        return {
            field.name: _packed(getattr(value, field.name))
            if "base64" in field.metadata
            else plain(getattr(value, field.name))
            for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def decode(kind: type[T], data: Any, *, where: str = "") -> T:
    """Rebuild a value of a type from plain data; the exact inverse of :func:`plain`.

    Args:
        kind: A dataclass, or anything a field of one may be annotated with: numbers, strings, booleans, None,
            tuples, mappings with string keys, literals, unions of these, ``Any``.
        data: What :func:`plain` gave, JSON in between or not.
        where: Path to the value, for messages.

    Returns:
        The value. Fields with a default may be missing: records of older versions lack them.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names it by its path.
    """
    found: T = _decoded(kind, data, where)
    return found


def _decoded(kind: Any, data: Any, where: str) -> Any:
    if kind is Any or kind is object:
        return data
    if is_dataclass(kind):
        return _record(kind, data, where)
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _one_of(get_args(kind), data, where)
    if origin is Literal:
        if not any(data == value and type(data) is type(value) for value in get_args(kind)):
            raise _mismatch(where, f"one of {', '.join(map(repr, get_args(kind)))}", data)
        return data
    if origin in (tuple, Sequence):
        return _tuple(get_args(kind), data, where)
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            raise _mismatch(where, "an object", data)
        (_, item) = get_args(kind)
        return {key: _decoded(item, value, f"{where}.{key}") for key, value in data.items()}
    return _leaf(kind, data, where)


def _record(kind: Any, data: Any, where: str) -> Any:
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise _mismatch(where, "an object", data)
    hints, known = _hints(kind), {field.name: field for field in fields(kind)}
    unknown = [name for name in data if name not in known]
    if unknown:
        raise ValueError(f"{_path(where, unknown[0])} is no known field")
    missing = [
        name
        for name, field in known.items()
        if name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{_path(where, missing[0])} is missing")
    return kind(
        **{
            name: _unpacked(item, _path(where, name))
            if "base64" in known[name].metadata and isinstance(item, str)
            else _decoded(hints[name], item, _path(where, name))
            for name, item in data.items()
        }
    )


def _packed(numbers: Sequence[int]) -> str:
    return base64.b64encode(bytes(numbers)).decode("ascii")


def _unpacked(text: str, where: str) -> tuple[int, ...]:
    try:
        return tuple(base64.b64decode(text, validate=True))
    except binascii.Error:
        raise _mismatch(where, "base64", text) from None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _one_of(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return _decoded(kind, data, where)
        except ValueError:
            continue
    return _decoded(others[-1], data, where)


def _tuple(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise _mismatch(where, "a list", data)
    if len(kinds) == 1 or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise _mismatch(where, f"{len(kinds)} items", data)
    if kinds and kinds[0] in (int, float, str) and all(type(item) is kinds[0] for item in data):
        return tuple(data)  # most of a report is long tuples of numbers
    return tuple(
        _decoded(kind, item, f"{where}[{index}]")
        for index, (kind, item) in enumerate(zip(kinds, data, strict=True))
    )


def _leaf(kind: Any, data: Any, where: str) -> Any:
    allowed = (int, float) if kind is float else kind
    if not isinstance(data, allowed) or (isinstance(data, bool) and kind is not bool):
        raise _mismatch(where, _NAMES.get(kind, str(kind)), data)
    return data


_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
}


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _mismatch(where: str, wanted: str, data: Any) -> ValueError:
    shown = repr(data)
    return ValueError(f"{where or 'the value'} is {shown[:40]}, not {wanted}")
