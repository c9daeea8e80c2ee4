"""Which matrices and vectors a person means: ``top``, ``all``, or names with indices."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_ITEM = re.compile(r"(?P<name>.+?)(?::(?P<indices>all|\d+(?:\+\d+)*))?")


@dataclass(frozen=True, kw_only=True)
class NamedVectors:
    """One item of a selection by name.

    Attributes:
        pattern: Name of a matrix, ``*`` standing for anything.
        vectors: ``top`` or ``all`` of its intruders, or indices by falling singular value, whatever their
            verdicts.
    """

    pattern: str
    vectors: Literal["top", "all"] | tuple[int, ...]


def parse_which(which: str) -> Literal["top", "all"] | tuple[NamedVectors, ...]:
    """Read a selection.

    Args:
        which: ``top`` (the highest intruder of each matrix, as the paper), ``all``, or names divided by
            commas: ``NAME`` (its top intruder), ``NAME:all``, ``NAME:3``, ``NAME:0+2``. A ``*`` in a name
            stands for anything.

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
                f"got '{printable(which)}' as the vectors to edit, expected top, all, or names like "
                "model.layers.0.self_attn.q_proj:0+2",
                remedy="see which names there are with intruscope layers BASE",
            )
        indices = match["indices"]
        chosen: Literal["top", "all"] | tuple[int, ...] = "top"
        if indices is not None:
            chosen = "all" if indices == "all" else tuple(sorted({int(i) for i in indices.split("+")}))
        items.append(NamedVectors(pattern=match["name"], vectors=chosen))
    return tuple(items)


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern means.

    Args:
        pattern: A name, or one with ``*`` for anything. Brackets mean themselves (``c_attn[q]``).
        names: That there are.

    Raises:
        UsageError: it means none of them.
    """
    expression = re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
    found = [name for name in names if expression.fullmatch(name)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        hint = f"did you mean {printable(near[0])}?" if near else "there is none to name"
        raise UsageError(
            f"got '{printable(pattern)}', expected the name of a matrix that the fine-tune changed",
            remedy=hint,
        )
    return found
