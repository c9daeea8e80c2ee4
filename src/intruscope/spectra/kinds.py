"""The order of the kinds of matrices, as data flows through a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = ("q", "k", "v", "kv", "qkv", "o", "gate", "up", "down")
"""Kinds as data flows through a block; others come after, by name."""


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds in the order of a block, each once; unknown ones after them, by name."""
    present = set(kinds)
    known = [kind for kind in KINDS if kind in present]
    return known + sorted(present - set(known))
