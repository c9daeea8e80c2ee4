"""How users select matrices and vectors: ``top``, ``all``, or names with indices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from intruscope.errors import UsageError, printable

_ITEM = re.compile(r"(?P<name>.+?)(?::(?P<indices>all|\d+(?:\+\d+)*))?")


@dataclass(frozen=True, kw_only=True)
class NamedVectors:
    """One item of a selection by name.

    Attributes:
        pattern: Name of a matrix, with ``*`` as a wildcard.
        vectors: ``top`` or ``all`` of its intruders, or indices by falling singular value, whatever their
            verdicts.
    """

    pattern: str
    vectors: Literal["top", "all"] | tuple[int, ...]


def parse_which(which: str) -> Literal["top", "all"] | tuple[NamedVectors, ...]:
    """Read a selection.

    Args:
        which: ``top`` (the highest intruder of each matrix, as the paper), ``all``, or names separated
            by commas: ``NAME`` (its top intruder), ``NAME:all``, ``NAME:3``, ``NAME:0+2``. ``*`` in a name is
            a wildcard.

    Raises:
        UsageError: an item that is none of these.
    """
    if which == "top":
        return "top"
    if which == "all":
        return "all"
    items = []
    for text in which.split(","):
        match = _ITEM.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"'{printable(which)}' does not select vectors; use top, all, or names like "
                "model.layers.0.self_attn.q_proj:0+2",
                remedy="list the names with intruscope layers BASE",
            )
        indices = match["indices"]
        chosen: Literal["top", "all"] | tuple[int, ...] = "top"
        if indices is not None:
            chosen = "all" if indices == "all" else tuple(sorted({int(i) for i in indices.split("+")}))
        items.append(NamedVectors(pattern=match["name"], vectors=chosen))
    return tuple(items)
