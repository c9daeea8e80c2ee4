"""The terminal's view of adapters on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable, printable_text
from intruscope.inspect.words import duplicate_sentence, families, span
from intruscope.report.names import DottedName
from intruscope.report.terminal import finding_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.inspect.records import InspectedAdapter, InspectReport

_MAX_FAMILIES = 24


def inspect_summary(report: InspectReport) -> list[RenderableType]:
    """One adapter in detail, or a table of several and then what is remarkable about each.

    Args:
        report: The inspection.

    Returns:
        Renderables for ``rich``. Names from files are escaped and never read as markup.
    """
    parts: list[RenderableType] = []
    if len(report.adapters) == 1:
        (adapter,) = report.adapters
        parts += [_title(adapter), *_facts(adapter), _modules(adapter), *finding_lines(adapter.findings)]
    else:
        parts.append(_overview(report))
        for adapter in report.adapters:
            lines = _lines(adapter)
            if lines:
                parts += [Text(f"\n{printable(adapter.name)}", style="bold"), *lines]
    if report.duplicates:
        parts.append(Text("\nDuplicates", style="bold"))
        parts += [Text(printable_text(duplicate_sentence(report, each))) for each in report.duplicates]
    return [*parts, Text(f"\n{report.note}", style="dim")]


def _title(adapter: InspectedAdapter) -> Text:
    base = "" if adapter.base is None else f" for {printable(adapter.base)}"
    return Text(f"{printable(adapter.name)}: {adapter.kind}{base}", style="bold")


def _facts(adapter: InspectedAdapter) -> list[RenderableType]:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("parameters", f"{adapter.num_parameters:,}")
    scale = _scale(adapter)
    if scale:
        table.add_row("scale of B A", scale)
    if adapter.frobenius_norm is not None:
        table.add_row("norm of all ΔW", f"{adapter.frobenius_norm:.4g}")
    return [table]


def _scale(adapter: InspectedAdapter) -> str:
    scales = sorted({module.scaling for module in adapter.modules if module.scaling is not None})
    if not scales:
        return ""
    shown = f"{scales[0]:.4g}" if len(scales) == 1 else f"{scales[0]:.4g} to {scales[-1]:.4g}, by module"
    if adapter.alpha is None or adapter.rank is None:
        return shown
    how = "alpha / √r (rsLoRA)" if adapter.use_rslora else "alpha / r"
    return f"{shown} = {how} with alpha {adapter.alpha:g}, r {adapter.rank}" + (
        " and patterns" if len(scales) > 1 else ""
    )


def _modules(adapter: InspectedAdapter) -> Table:
    """One line for each family: its range says how alike its members are."""
    title = f"{len(adapter.modules)} modules: median (smallest–largest) by name"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("module")
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    for name in ("rank", "effective rank", "norm of ΔW", "largest σ"):
        table.add_column(name, justify="right")
    found = families(adapter.modules)
    for family in found[:_MAX_FAMILIES]:
        members = family.modules
        table.add_row(
            DottedName(family.name),
            str(len(members)),
            f"{family.shape[0]} x {family.shape[1]}",
            span([member.rank for member in members]),
            span([member.effective_rank for member in members]),
            span([member.frobenius_norm for member in members]),
            span([member.spectral_norm for member in members]),
        )
    if len(found) > _MAX_FAMILIES:
        rest = Text(f"and {len(found) - _MAX_FAMILIES} more", style="dim")
        table.add_row(rest, *[""] * 6)
    return table


def _overview(report: InspectReport) -> Table:
    table = Table(
        title=f"{len(report.adapters)} adapters", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1)
    )
    table.add_column("adapter", overflow="fold")
    table.add_column("kind")
    for name in ("modules", "rank", "scale", "norm of ΔW", "effective rank"):
        table.add_column(name, justify="right")
    for adapter in report.adapters:
        if adapter.failure is not None:
            unread = Text("not read", style="bold red")
            table.add_row(Text(printable(adapter.name)), unread, *[""] * 5)
            continue
        norm = "–" if adapter.frobenius_norm is None else f"{adapter.frobenius_norm:.4g}"
        table.add_row(
            Text(printable(adapter.name)),
            adapter.kind,
            str(len(adapter.modules)),
            span([module.rank for module in adapter.modules]),
            span([module.scaling for module in adapter.modules]),
            norm,
            span([module.effective_rank for module in adapter.modules]),
        )
    return table


def _lines(adapter: InspectedAdapter) -> list[RenderableType]:
    if adapter.failure is not None:
        return [Text(printable_text(adapter.failure.message), style="red")]
    return finding_lines(adapter.findings)
