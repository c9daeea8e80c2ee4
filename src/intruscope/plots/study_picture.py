"""A study's picture as data: what is drawn, apart from how.

The page and matplotlib draw the same pictures, so that what one shows the other shows too. All figures stand
in :class:`Point`; a drawing adds nothing to them and leaves nothing out.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.plots.study_captions import ABOUT, ABOUT_MERGING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.plots.study_captions import About

LineKind = Literal["mean", "band", "course", "marks", "across"]
"""Joined marks with whiskers or with a band, a thin line with a mark at its end, marks alone, marks with a
reach across."""


@dataclass(frozen=True)
class LineStyle:
    """How a line is distinguished from others: never by colour alone.

    Attributes:
        colour: RecipePlace in the one row of colours; None for grey.
        mark: RecipePlace in the row of marks; None for none.
        dash: RecipePlace in the row of dashes.
        is_hollow: Whether its marks are outlines.
    """

    colour: int | None
    mark: int | None
    dash: int = 0
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark.

    Attributes:
        x, y: Its place, finite.
        low, high: Ends of its reach (down and up; across for the kind ``across``); None without.
        tooltip: What is shown when the reader points at it; lines.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tooltip: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Marks that belong together.

    Attributes:
        name: In the legend; lines of one name share a place in it.
        look: See there.
        kind: What of it is drawn.
        points: In the order in which they are joined.
        shift: To the right, in shares of the panel's width, so that reaches do not hide each other.
    """

    name: str
    look: LineStyle
    kind: LineKind
    points: tuple[Point, ...]
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a panel.

    Attributes:
        title: What it shows, with the unit.
        ticks: Value and text, where they are not round numbers.
        is_log: Whether it is logarithmic; all values are above 0 then.
        from_zero: Whether it starts at 0.
        to: Where it ends; None: with the figures.
    """

    title: str
    ticks: tuple[tuple[float, str], ...] = ()
    is_log: bool = False
    from_zero: bool = False
    to: float | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        x, y: The axes.
        lines: In the order of the legend; the first is drawn last, on top.
        has_zero: Whether a line at 0 parts what rises from what falls.
        threshold: Where a dotted line across parts intruders from others; None without.
    """

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    has_zero: bool = False
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class MapPanel:
    """Absolute cosines of two rows of vectors, base vectors down, tuned ones across.

    Attributes:
        title: Above it.
        num_base, num_tuned: Its sides.
        hundredths: Cosines times 100, row by row.
    """

    title: str
    num_base: int
    num_tuned: int
    hundredths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Panels with one legend and one caption.

    Attributes:
        kind: Key of its words in :data:`intruscope.plots.study_captions.ABOUT`, or ``ABOUT_MERGING``.
        panels: Row by row.
        columns: Panels in a row.
        which: What distinguishes it from others of its kind; empty if there is only one.
        note: What its caption says of these very rows; sentences.
    """

    kind: str
    panels: tuple[Panel, ...] | tuple[MapPanel, ...]
    columns: int
    which: str = ""
    note: str = ""

    @property
    def about(self) -> About:
        """Its words."""
        return ABOUT[self.kind] if self.kind in ABOUT else ABOUT_MERGING[self.kind]

    @property
    def name(self) -> str:
        """Of its files and its place on a page: letters, digits and hyphens."""
        which = re.sub(r"[^a-z0-9]+", "-", self.which.lower()).strip("-")
        return f"{self.kind}-{which}" if which else self.kind

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{self.about.title}: {self.which}" if self.which else self.about.title


def number(value: float, digits: int = 3) -> str:
    """A figure of so many significant digits, with a minus that is one."""
    return f"{value:.{digits}g}".replace("-", "−")


def mean_point(x: float, values: Sequence[float], what: str, *, unit: str = "") -> Point:
    """The mean of some values up, with their range.

    Args:
        x: Its place.
        values: At least one.
        what: What the values are, in words.
        unit: Of the values, with a space before it where there is one.
    """
    mean, low, high = statistics.fmean(values), min(values), max(values)
    return Point(x=x, y=mean, low=low, high=high, tooltip=f"{what}\n{values_text(values, unit)}")


def across_point(y: float, values: Sequence[float], what: str, *, unit: str = "") -> Point:
    """The same across: ``y`` is the place of a row."""
    mean, low, high = statistics.fmean(values), min(values), max(values)
    return Point(x=mean, y=y, low=low, high=high, tooltip=f"{what}\n{values_text(values, unit)}")


def values_text(values: Sequence[float], unit: str = "") -> str:
    """Mean, range and number of some values."""
    mean = f"{number(statistics.fmean(values))}{unit}"
    if len(values) == 1:
        return f"{mean}, one run"
    return f"{mean} ({number(min(values))} to {number(max(values))}), {len(values)} runs"


def shifts(count: int, *, room: float = 0.012) -> list[float]:
    """Shifts of so many lines about their common place."""
    return [room * (place - (count - 1) / 2) for place in range(count)]


def picture_of(kind: str, panels: Sequence[Panel], columns: int, **words: str) -> Picture | None:
    """A picture of some panels; None where none of them has anything to draw.

    Args:
        kind: See :class:`Picture`, as with the others.
        panels: Row by row.
        columns: Panels in a row; 0 is taken as 1.
        words: ``which`` and ``note``.
    """
    if not any(line.points for panel in panels for line in panel.lines):
        return None
    return Picture(kind=kind, panels=tuple(panels), columns=max(1, columns), **words)
