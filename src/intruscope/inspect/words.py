"""How an inspection groups modules and writes its figures, for the terminal and for notebooks."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from intruscope.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.inspect.records import Duplicate, InspectedModule, InspectReport


class Family(NamedTuple):
    """Modules of one adapter with one last word and one shape."""

    name: str
    shape: tuple[int, int]
    modules: tuple[InspectedModule, ...]


def families(modules: Sequence[InspectedModule]) -> list[Family]:
    """Group modules by the last word of their name and their shape, in the order of their first members."""
    groups: dict[tuple[str, tuple[int, int]], list[InspectedModule]] = {}
    for module in modules:
        groups.setdefault((module.family, module.shape), []).append(module)
    return [Family(name, shape, tuple(members)) for (name, shape), members in groups.items()]


def span(values: Sequence[float | None]) -> str:
    """Median and range of what is known: ``3.1 (2.2–4.5)``; one figure where all are equal."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, middle, high = (f"{value:.3g}" for value in (min(known), statistics.median(known), max(known)))
    return middle if low == high else f"{middle} ({low}–{high})"


def duplicate_sentence(report: InspectReport, duplicate: Duplicate) -> str:
    """Say which adapter repeats which."""
    later, first = (printable(report.adapters[index].name) for index in (duplicate.adapter, duplicate.of))
    same = abs(duplicate.scale - 1.0) <= duplicate.relative_difference + 1e-6
    what = "the same update as" if same else f"{duplicate.scale:.4g} times the update of"
    return f"{later} is {what} {first} (relative difference {duplicate.relative_difference:.1e})"
