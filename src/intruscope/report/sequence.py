"""A chain in the terminal: one sentence and two tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.sweep.words import interval_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.forgetting.intervals import Interval
    from intruscope.sequence.records import ChainReport, StageReport

_NAME = 12


def chain_sentence(report: ChainReport) -> str:
    """What happened to the earlier tasks, as far as the interval can say."""
    found = report.stages[-1].transfer.backward_transfer
    assert found is not None  # a chain has at least two tasks
    change = f"{interval_text(found, 1, scale=100.0, is_signed=True)} points since they were trained"
    if found.high < 0:
        return f"Earlier tasks lost accuracy: on average {change}."
    if found.low > 0:
        return f"Earlier tasks gained accuracy: on average {change}."
    return f"No measurable loss on earlier tasks: on average {change}."


def chain_summary(report: ChainReport) -> list[RenderableType]:
    """Terminal output: the sentence, the accuracy matrix and the stages; fits 100 columns.

    Args:
        report: The chain.
    """
    return [
        Text(chain_sentence(report), style="bold"),
        _matrix(report),
        _stages(report),
        Text(
            "Accuracy in %, with a head fitted on the frozen body. Bold: the task that was just trained. "
            "-/+: below/above the base (McNemar, p < .05, each cell by itself).",
            style="dim",
        ),
    ]


def _matrix(report: ChainReport) -> Table:
    table = Table(title="Accuracy after each task", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for task in report.tasks:
        table.add_column(printable(task)[:_NAME], justify="right")
    table.add_column("mean so far", justify="right")
    for stage in range(len(report.tasks) + 1):
        cells = [report.cell(stage, task) for task in report.tasks]
        shown = []
        for place, cell in enumerate(cells):
            against = cell.against_baseline
            changed = against is not None and against.mcnemar_p < 0.05
            sign = "" if not changed or against is None else "+" if against.difference.estimate > 0 else "-"
            own = stage == place + 1
            shown.append(
                Text(f"{100.0 * cell.accuracy.estimate:.1f}{sign or ' '}", style="bold" if own else "")
            )
        mean = f"{100.0 * report.stages[stage - 1].transfer.average_accuracy.estimate:.1f}" if stage else ""
        name = f"after {printable(report.tasks[stage - 1])[:_NAME]}" if stage else "base"
        table.add_row(name, *shown, mean)
    return table


def _stages(report: ChainReport) -> Table:
    table = Table(title="Compared with the original base", title_justify="left", box=box.SIMPLE_HEAD)
    has_text = report.stages[-1].forgetting is not None
    for name in ("", "intruders", "update", "eff. rank", "earlier tasks (points)"):
        table.add_column(name, justify="left" if not name else "right")
    if has_text:
        table.add_column("forgetting (nats/token)", justify="right")
    for stage in report.stages:
        table.add_row(*_stage(stage), *([_forgetting(stage)] if has_text else []))
    return table


def _stage(stage: StageReport) -> list[str]:
    weights = stage.weights
    undecided = f" (+{weights.num_undecided}?)" if weights.num_undecided else ""
    return [
        f"after {printable(stage.task)[:_NAME]}",
        f"{weights.num_intruders}{undecided} of {weights.num_candidates}",
        f"{100.0 * weights.relative_update_norm:.1f}%",
        "" if weights.effective_rank is None else f"{weights.effective_rank:.1f}",
        _points(stage.transfer.backward_transfer),
    ]


def _points(found: Interval | None) -> str:
    return "" if found is None else interval_text(found, 1, scale=100.0, is_signed=True)


def _forgetting(stage: StageReport) -> str:
    return "" if stage.forgetting is None else interval_text(stage.forgetting.change, 3, is_signed=True)
