"""The terminal's view of an extraction: the adapter, its error, and the error at every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.plots.extract import error_curve_figure
from intruscope.plots.figures import write_figures
from intruscope.report.names import DottedName
from intruscope.report.terminal import finding_lines
from intruscope.report.words import percent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from intruscope.extract.plan import ExtractPlan
    from intruscope.extract.records import ExtractedMatrix

_MAX_ROWS = 16
_MAX_POINTS = 12


def extract_table(plan: ExtractPlan) -> list[RenderableType]:
    """A plan, in the order in which people ask.

    Args:
        plan: Before or after it was applied.

    Returns:
        Renderables for ``rich``: the sentence, the figures, the curve, the matrices, findings. Names from
        files are escaped and never read as markup.
    """
    parts: list[RenderableType] = [
        Text(f"base   {printable(plan.pairing.base)}\ntuned  {printable(plan.pairing.tuned)}"),
        Text(extract_sentence(plan), style="bold"),
    ]
    if not plan.is_empty:
        parts += [_figures(plan), _curve(plan), _matrices(plan)]
    return parts + finding_lines(plan.findings)


def extract_sentence(plan: ExtractPlan) -> str:
    """Say in one or two sentences what an adapter is and what it loses."""
    if plan.is_empty:
        return "Nothing to extract: no selected matrix differs from the base."
    sums = plan.totals
    matrices = "1 matrix" if sums.num_matrices == 1 else f"{sums.num_matrices} matrices"
    rank = f"of rank {plan.stored_rank}"
    if plan.stored_rank is None:
        ranks = sorted({matrix.rank for matrix in plan.matrices if matrix.rank})
        rank = f"with ranks from {ranks[0]} to {ranks[-1]}"
    return (
        f"A LoRA {rank} on {matrices} keeps {percent(sums.energy)} of the squared update; its relative error "
        f"is {sums.relative_error:.3g}."
    )


def _figures(plan: ExtractPlan) -> Table:
    sums = plan.totals
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    padded = sums.stored_parameters - sums.num_parameters
    zeros = f", plus {padded:,} zeros of padding" if padded else ""
    table.add_row("parameters", f"{sums.num_parameters:,}{zeros}, {plan.dtype}")
    if plan.rest:
        saved = sum(rest.status == "saved" for rest in plan.rest)
        whole = f"{saved} saved whole, " if saved else ""
        table.add_row(
            "everything else",
            f"{len(plan.rest)} more tensors changed: {whole}{len(plan.rest) - saved} not in the adapter; "
            f"relative error including them: {sums.relative_error_with_rest:.3g}",
        )
    if any(matrix.intruders for matrix in plan.matrices):
        undecided = f"; {sums.undecided} undecided" if sums.undecided else ""
        table.add_row(
            "intruders",
            f"{sums.tuned_intruders} in the tuned model, of which {sums.kept_intruders} are kept; "
            f"{sums.extracted_intruders} in the base with the adapter{undecided}",
        )
    return table


def _curve(plan: ExtractPlan) -> Table:
    title = "Smallest possible error, over all matrices"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for name in ("rank", "parameters", "error", "error, own ranks"):
        table.add_column(name, justify="right", no_wrap=True)
    best = {point.num_parameters: point.relative_error for point in plan.best}
    for point in plan.curve[-_MAX_POINTS:]:
        # The smallest error that a rank per matrix reaches with no more parameters.
        within = [error for size, error in best.items() if size <= point.num_parameters]
        own = f"{min(within):.3g}" if within else ""
        table.add_row(str(point.rank), f"{point.num_parameters:,}", f"{point.relative_error:.3g}", own)
    return table


def _matrices(plan: ExtractPlan) -> Table:
    """The matrices with the largest relative errors first."""
    title = "Largest relative errors first (Frobenius; spectral: largest singular value of what is lost)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("matrix")
    for name in ("rank", "error", "spectral", "eff. rank", "intruders"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(plan.matrices, key=lambda matrix: -matrix.relative_error)
    for matrix in ordered[:_MAX_ROWS]:
        error = f"{matrix.relative_error:.3g}"
        table.add_row(DottedName(matrix.name), str(matrix.rank), error, *_more(matrix))
    if len(ordered) > _MAX_ROWS:
        table.add_row(Text(f"and {len(ordered) - _MAX_ROWS} more matrices", style="dim"), "", "", "", "", "")
    return table


def _more(matrix: ExtractedMatrix) -> tuple[str, str, str]:
    effective = matrix.effective_rank
    kept = sum(each.kept for each in matrix.intruders)
    tuned = sum(each.tuned for each in matrix.intruders)
    return (
        f"{matrix.spectral_high / matrix.update_norm:.3g}",
        "" if effective is None else f"{effective.value:.3g}",
        f"{kept} of {tuned} kept" if tuned else "",
    )


def write_curve(plan: ExtractPlan, folder: Path) -> tuple[str, ...]:
    """The error curve as ``error-curve.png`` and ``error-curve.svg``.

    Args:
        plan: Not empty.
        folder: Made if it does not exist.

    Raises:
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """

    def draw() -> Iterator[tuple[str, Any]]:
        from pathlib import Path as _Path

        sums = plan.totals
        yield (
            "error-curve",
            error_curve_figure(
                [(p.rank, p.num_parameters, p.relative_error) for p in plan.curve if p.rank is not None],
                [(point.num_parameters, point.relative_error) for point in plan.best],
                (sums.num_parameters, sums.relative_error),
                title=f"{_Path(plan.pairing.tuned).name} as a low-rank adapter",
            ),
        )

    return write_figures(draw, folder)
