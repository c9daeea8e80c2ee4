"""The terminal's view of a repair: what changes, in energy and not only in counts, and how it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.report.names import DottedName
from intruscope.report.terminal import finding_lines
from intruscope.report.words import percent

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.repair.plan import RepairPlan
    from intruscope.repair.records import EditedMatrix

_MAX_ROWS = 16


def repair_table(plan: RepairPlan) -> list[RenderableType]:
    """A plan, in the order in which people ask.

    Args:
        plan: Before or after it was applied.

    Returns:
        Renderables for ``rich``: the sentence, the energies, a table of matrices, how an adapter is stored,
        findings. Names from files are escaped and never read as markup.
    """
    parts: list[RenderableType] = [
        Text(f"base   {printable(plan.survey.pairing.base)}\ntuned  {printable(plan.survey.pairing.tuned)}"),
        Text(repair_sentence(plan), style="bold"),
    ]
    if plan.matrices:
        parts += [_figures(plan), _matrices(plan)]
    return parts + finding_lines(plan.findings)


def repair_sentence(plan: RepairPlan) -> str:
    """Say in one or two sentences what a repair does; it promises nothing about forgetting."""
    sums = plan.totals
    undecided = (
        f" {plan.num_left} undecided vectors are left alone."
        if plan.control == "intruders" and plan.num_left
        else ""
    )
    if not plan.edits:
        why = "the strength is 1" if plan.strength == 1.0 else "no vector is an intruder"
        if plan.fit is not None:
            why = "no step of the fit lowered the loss on the part of the data that was not fitted"
        return f"Nothing to repair: {why}.{undecided}"
    if plan.fit is not None:
        fit = plan.fit
        return (
            f"{fit.title[0].upper()}{fit.title[1:]}, weight {fit.weight:g}: {fit.num_trained:,} numbers, "
            f"fitted in {fit.seconds:.0f} seconds (the best of {fit.num_steps} steps was {fit.stopped_at}), "
            f"change {len(plan.edits)} matrices by {sums.change_norm:.4g} (Frobenius norm)."
        )
    if plan.control != "intruders":
        return (
            f"The control '{plan.control}' at strength {plan.strength:g} changes {len(plan.edits)} tensors "
            f"by {sums.change_norm:.4g} (Frobenius norm over the surveyed matrices)."
        )
    what = "removed" if plan.strength == 0.0 else f"multiplied by {plan.strength:g}"
    counted = ""
    if sums.num_still_counted:
        counted = (
            f" Their directions do not change: a scan will still count at least {sums.num_still_counted} of "
            "them as intruders, with smaller singular values."
        )
    vectors = "1 vector is" if sums.num_vectors == 1 else f"{sums.num_vectors} vectors are"
    matrices = "1 matrix" if sums.num_matrices == 1 else f"{sums.num_matrices} matrices"
    return f"{vectors} {what}, in {matrices}.{counted}{undecided}"


def _figures(plan: RepairPlan) -> Table:
    sums = plan.totals
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    label = "energy in intruders"
    for what, before, after in (
        ("of the edited updates", sums.update_before, sums.update_after),
        ("of the matrices", sums.tuned_before, sums.tuned_after),
    ):
        if before is not None and after is not None:
            table.add_row(label, f"{percent(before)} {what} before, {percent(after)} after")
            label = ""
    if sums.update_norm_after is not None:
        shrinks = f"{sums.update_norm:.4g} before, {sums.update_norm_after:.4g} after"
        table.add_row("norm of the updates", f"{shrinks} (‖ΔW‖ of the edited matrices)")
    table.add_row("norm of the change", f"{sums.change_norm:.4g}")
    table.add_row("writes", _writes(plan))
    return table


def _writes(plan: RepairPlan) -> str:
    if plan.writes == "checkpoint":
        return "a full checkpoint, the adapter merged" if plan.merges else "a full checkpoint"
    if not any(module.touched for module in plan.modules):
        return "an adapter; its factors are not changed"
    before = sorted({module.before for module in plan.modules})
    after = sorted({module.after for module in plan.modules})
    if before == [0]:
        return f"a LoRA adapter of rank {after[-1]}"
    ranks = [str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in (before, after)]
    same = f"an adapter of rank {ranks[1]}"
    return same if before == after else f"{same} (before: {ranks[0]})"


def _matrices(plan: RepairPlan) -> Table:
    """The matrices with the largest changes first."""
    title = "Largest changes first; before and after: share of the update in the intruders' directions"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("matrix")
    for name in ("vectors", "change", "before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(plan.matrices, key=lambda matrix: -matrix.change_norm)
    for matrix in ordered[:_MAX_ROWS]:
        change = f"{matrix.change_norm:.3g}"
        table.add_row(DottedName(matrix.name), _vectors(matrix), change, *_shares(matrix))
    if len(ordered) > _MAX_ROWS:
        table.add_row(Text(f"and {len(ordered) - _MAX_ROWS} more matrices", style="dim"), "", "", "", "")
    return table


def _vectors(matrix: EditedMatrix) -> str:
    if matrix.vectors:
        return ", ".join(f"#{vector.index}" for vector in matrix.vectors)  # a bare 0 reads as a count
    if matrix.num_directions:
        return f"{matrix.num_directions} others"
    return f"all x {matrix.update_scale:.3g}"


def _shares(matrix: EditedMatrix) -> tuple[str, str]:
    update = matrix.update
    if update is None or update.before <= 0.0:
        return "", ""
    after = percent(min(1.0, update.intruders_after / update.after)) if update.after > 0.0 else "none left"
    return percent(min(1.0, update.intruders_before / update.before)), after
