"""One style for all pictures: colours that colour-blind people tell apart, sizes for a talk.

Nothing here touches pyplot or the global settings for longer than a ``with`` block. SVG text stays
text, so that it can be searched and edited.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SERIES = ("#0b6fb3", "#c8450b", "#00805c", "#a2508f", "#8a6d00", "#4a5b6c")
MARKERS = ("o", "D", "^", "s", "v", "P")
VERDICTS = {"aligned": "#5f9fc9", "degenerate": "#a2508f", "borderline": "#b58900", "intruder": "#c8450b"}
INK, SOFT, GRID, MISSING = "#1c2024", "#5d666f", "#e4e5e5", "#d4d6d8"
SEQUENTIAL = (
    "#f1f1ee", "#fde8c4", "#fbcf94", "#f7ae66", "#ee8549", "#d95b3e", "#b93a45", "#8f2450", "#5c1550",
)  # fmt: skip
"""Light to dark with falling lightness throughout; the page uses the same."""

_SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so that a picture is the same everywhere
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#b9bdc1",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "intruscope",  # the same records give the same bytes
}


@contextmanager
def picture_style() -> Iterator[None]:
    """Settings of matplotlib for as long as pictures are drawn and written."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


def drawable(text: str, *, limit: int = 60) -> str:
    """Escape what the pictures' font has no glyph for, and cut in the middle, where names differ least.

    Args:
        text: A foreign name.
        limit: Characters at most.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=["DejaVu Sans"])))
    shown = "".join(
        c if c.isprintable() and font.get_char_index(ord(c)) else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
    if len(shown) <= limit:
        return shown
    kept = limit - 1
    return f"{shown[: kept // 2]}…{shown[-(kept - kept // 2) :]}"
