"""The terminal's view of a verification: the answer, the modules that need attention, what else changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.report.names import DottedName
from intruscope.report.terminal import finding_lines
from intruscope.verify.words import by_attention, verify_sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.verify.records import ModuleCheck, OtherTensor, VerifyReport

_MAX_ROWS = 16
_STYLE = {"applied": "green", "open": "yellow"}


def verify_summary(report: VerifyReport) -> list[RenderableType]:
    """A report, in the order in which people ask.

    Args:
        report: Of a verification.

    Returns:
        Renderables for ``rich``. Names from files are escaped and never read as markup.
    """
    lines = [f"base     {printable(report.base)}"]
    for each in report.adapters:
        weight = "" if each.weight == 1 else f", weight {each.weight:g}"
        lines.append(f"adapter  {printable(each.name)}{weight}")
    lines.append(f"merged   {printable(report.merged)}")
    parts: list[RenderableType] = [Text("\n".join(lines)), Text(verify_sentence(report), style="bold")]
    if report.modules:
        parts.append(_modules(by_attention(report.modules)))
    shown = [each for each in report.others if not each.expected]
    if shown:
        parts.append(_others(shown))
    return [*parts, *finding_lines(report.findings)]


def _modules(modules: list[ModuleCheck]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("module")
    table.add_column("status", no_wrap=True)
    for name in ("strength", "residual", "rounding"):
        table.add_column(name, justify="right", no_wrap=True)
    for module in modules[:_MAX_ROWS]:
        status = Text(module.status, style=_STYLE.get(module.status, "red"))
        table.add_row(DottedName(module.name), status, *map(_figure, _figures(module)))
    if len(modules) > _MAX_ROWS:
        table.add_row(Text(f"and {len(modules) - _MAX_ROWS} more modules", style="dim"), "", "", "", "")
    return table


def _figures(module: ModuleCheck) -> tuple[float | None, float | None, float | None]:
    return module.strength, module.residual, module.rounding


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _others(others: list[OtherTensor]) -> Table:
    table = Table(title="Other tensors", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("tensor")
    table.add_column("status", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("remark")
    for each in others[:_MAX_ROWS]:
        change = _figure(each.relative_change)
        table.add_row(DottedName(each.name), each.status, change, printable(each.reason))
    if len(others) > _MAX_ROWS:
        table.add_row(Text(f"and {len(others) - _MAX_ROWS} more tensors", style="dim"), "", "", "")
    return table
