"""The result of a query as a table in the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.report.words import printable_text

if TYPE_CHECKING:
    from intruscope.studies.query import Answer

MAX_ROWS = 200
_DIGITS = 5


def answer_table(answer: Answer) -> Table:
    """All rows, or the first 200 and the number of the others.

    Args:
        answer: From :func:`intruscope.studies.query.query`.
    """
    hidden = len(answer.rows) - MAX_ROWS
    caption = f"and {hidden:,} more rows: --json writes all" if hidden > 0 else None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), caption=caption, caption_justify="left")
    numeric = [
        all(row[place] is None or _is_number(row[place]) for row in answer.rows)
        for place in range(len(answer.columns))
    ]
    for name, is_numeric in zip(answer.columns, numeric, strict=True):
        table.add_column(Text(printable_text(name)), justify="right" if is_numeric else "left")
    for row in answer.rows[:MAX_ROWS]:
        table.add_row(*(Text(_shown(value)) for value in row))
    return table


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    if isinstance(value, str):
        return "\n".join(printable_text(line) for line in value.split("\n"))
    return json.dumps(value)
