"""The terminal's view of a merge: what is merged and how, what came out, and what to know about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable, readable_bytes
from intruscope.merge.findings import rank_bound
from intruscope.merge.rules import RULES
from intruscope.report.names import DottedName
from intruscope.report.terminal import finding_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.merge.records import MergedModule, MergeReport

_MAX_ROWS = 12


def merge_table(report: MergeReport) -> list[RenderableType]:
    """A merge, planned or done.

    Args:
        report: With or without figures.

    Returns:
        Renderables for ``rich``: the sentence, the fine-tunes, the modules, findings.
    """
    parts: list[RenderableType] = [
        Text(f"base   {printable(report.base)}"),
        Text(merge_sentence(report), style="bold"),
        _how(report),
        _tuned(report),
    ]
    if report.modules:
        parts.append(_modules(report))
    return parts + finding_lines(report.findings)


def merge_sentence(report: MergeReport) -> str:
    """Say in one sentence what the merge is."""
    count = len(report.labels)
    kind = "a LoRA adapter" if report.writes == "adapter" else "a full checkpoint"
    task = report.settings.task
    if report.writes == "emr":
        return f"{count} tasks with one unified update, and a mask and a rescaler for each (EMR-Merging)."
    if task is not None:
        return f"EMR-Merging's model of the task {printable(task)}, one of {count}, as {kind}."
    if report.rank is not None:
        kind = f"{kind} of rank {report.rank}"
    elif report.writes == "adapter":
        kind += _planned_rank(report)
    return f"{count} fine-tunes merged into {kind}."


def _planned_rank(report: MergeReport) -> str:
    if report.settings.rank is not None:
        return f" of rank {report.settings.rank} at most"
    bounds = [rank_bound(module) for module in report.modules]
    known = [bound for bound in bounds if bound is not None]
    return f" of rank {max(known)} at most" if known and len(known) == len(bounds) else ""


def _how(report: MergeReport) -> Table:
    rule, settings = RULES[report.settings.rule], report.settings
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("rule", f"{rule.title} ({rule.source})")
    basis = "" if report.space == "dense" else f", basis {settings.basis}"
    same = "" if rule.elementwise else " (the result is the same in every space)"
    table.add_row("space", f"{report.space}{basis}{same}")
    numbers = [f"lambda {settings.scaling:g}"]
    numbers += [f"density {report.density:g}"] if report.density is not None else []
    numbers += [f"ranked {'over all matrices' if settings.trim == 'global' else 'per matrix'}"] * rule.trims
    numbers += [f"floor {settings.floor:g}"] if "floor" in rule.uses else []
    numbers += [f"rescale {settings.rescale}"] if "rescale" in rule.uses else []
    table.add_row("options", ", ".join(numbers))
    if report.vectors:
        table.add_row("biases and norms", f"{len(report.vectors)}, by the rule {report.vector_rule}")
    if report.heads:
        whose = "each task keeps its own"
        if report.writes != "emr":
            whose = "the base's" if report.kept_heads is None else f"those of {printable(report.kept_heads)}"
        table.add_row("heads", whose)
    if report.relative_error is not None:
        worst = report.worst
        most = "" if worst is None else f"; {worst.relative_error:.3g} in {printable(worst.name)}, the worst"
        table.add_row("relative error", f"{report.relative_error:.3g} of the merged update as written{most}")
    emr = report.emr
    if emr is not None:
        table.add_row(
            "size",
            f"{readable_bytes(emr.unified_bytes)} unified, {readable_bytes(emr.mask_bytes)} of masks; the "
            f"fine-tunes: {readable_bytes(emr.input_bytes)}",
        )
    return table


def _tuned(report: MergeReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("fine-tune")
    columns = ["weight", "modules", "update norm"]
    columns += ["rescaler", "mask density"] if report.emr is not None else []
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    weights = report.settings.weights or (1.0,) * len(report.labels)
    for at, (label, weight) in enumerate(zip(report.labels, weights, strict=True)):
        own = [module for module in report.modules if module.ranks[at] != 0]
        norms = [module.update_norms[at] ** 2 for module in own if module.update_norms is not None]
        row = [f"{weight:g}", str(len(own)), f"{sum(norms) ** 0.5:.4g}" if norms else ""]
        if report.emr is not None:
            row += [f"{report.emr.rescalers[at]:.3g}", f"{report.emr.mask_densities[at]:.0%}"]
        table.add_row(Text(printable(label)), *row)
    return table


def _modules(report: MergeReport) -> Table:
    """The modules with the largest merged updates first; in the order of the base in a plan."""
    table = Table(title="Modules", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("module")
    for name in ("shape", "ranks", "merged rank", "norm", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(report.modules, key=lambda module: -(module.merged_norm or 0.0))
    for module in ordered[:_MAX_ROWS]:
        table.add_row(DottedName(module.name), *_cells(module))
    if len(ordered) > _MAX_ROWS:
        table.add_row(Text(f"and {len(ordered) - _MAX_ROWS} more modules", style="dim"), *[""] * 5)
    return table


def _cells(module: MergedModule) -> tuple[str, ...]:
    ranks = ["dense" if rank is None else "-" if rank == 0 else str(rank) for rank in module.ranks]
    return (
        "x".join(map(str, module.shape)),
        " + ".join(dict.fromkeys(ranks)) if len(set(ranks)) == 1 else " + ".join(ranks),
        "" if module.rank is None else str(module.rank),
        "" if module.merged_norm is None else f"{module.merged_norm:.3g}",
        "" if module.relative_error is None else f"{module.relative_error:.1e}",
    )
