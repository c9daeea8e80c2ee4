"""Whether two texts hold the same lines: nothing is measured on what was trained or fitted on."""

from __future__ import annotations

import re

_TELLING_CHARACTERS = 40
"""Shorter lines of running text (a closing bracket, an import) are in many documents."""
MAX_SHARED_LINES = 0.05
"""Separate files of one project share about 2% of their long lines: licences, idioms, signatures."""


def telling_lines(text: str) -> list[str]:
    """The lines that are long enough to be told apart; the whole text where none is."""
    lines = [line.strip() for line in re.split("\r\n|\n|\r", text)]
    return [line for line in lines if len(line) >= _TELLING_CHARACTERS] or [text.strip()]
