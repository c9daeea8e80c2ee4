"""Names of modules in a table's cells: they break after dots, not within words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.text import Text

from intruscope.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions


class DottedName:
    """A name from a file, escaped, that takes as many lines as its column needs.

    Args:
        name: As stored, for example ``model.layers.0.self_attn.q_proj``.
    """

    def __init__(self, name: str) -> None:
        self._parts = [Text(part) for part in re.findall(r"[^.]*\.|[^.]+", printable(name))]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """At least the longest word, at most the whole name."""
        widths = [part.cell_len for part in self._parts]
        return Measurement(max(widths, default=0), sum(widths)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The lines, each as long as fits."""
        line = Text(overflow="fold")
        for part in self._parts:
            if line and line.cell_len + part.cell_len > options.max_width:
                yield line
                line = Text(overflow="fold")
            line.append_text(part)
        yield line
