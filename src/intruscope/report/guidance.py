"""Completions at several strengths of guidance, side by side in a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable, printable_text
from intruscope.guidance.records import gamma_title

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.guidance.records import Completion, GuideReport


def guide_summary(report: GuideReport) -> list[RenderableType]:
    """The models, then each prompt with a column for each gamma.

    Args:
        report: Of ``intruscope guide``.

    Returns:
        Renderables for ``rich``. What a model wrote is escaped and never read as markup.
    """
    parts: list[RenderableType] = [Text(f"base   {printable(report.base)}\ntuned  {printable(report.tuned)}")]
    for index, prompt in enumerate(report.prompts):
        parts += [Text(_lines(prompt), style="bold"), _completions(report.of_prompt(index))]
    return parts


def _completions(completions: tuple[Completion, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=True)
    for each in completions:
        table.add_column(f"gamma {gamma_title(each.gamma)}", ratio=1, overflow="fold")
    table.add_row(*(Text(_lines(each.text) + ("" if each.ended else " …")) for each in completions))
    return table


def _lines(text: str) -> str:
    """Text with its line breaks, but no two empty lines in a row; what else does not print is escaped."""
    lines = re.sub(r"\n(\s*\n)+", "\n\n", text).strip("\n").split("\n")
    return "\n".join(map(printable_text, lines))
