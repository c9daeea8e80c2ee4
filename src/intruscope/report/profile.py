"""A profile as JSON, as a table in the terminal, and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable
from intruscope.plots.figures import write_figures
from intruscope.plots.profile import Bar, Panel, profile_figure
from intruscope.profiling.records import FULL, PHASES, SCHEMA, Shape
from intruscope.profiling.words import MEMORY_HOLDS, spread
from intruscope.records.plain import plain
from intruscope.report.words import percent, printable_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from intruscope.profiling.records import ProfileReport, SettingReport, ShapeReport

_STYLE = {"faster": "green", "slower": "red", "alike": "", "undecided": "dim"}
_STOPPED = {
    "precise": "all intervals reached the requested width",
    "time": "time limit reached",
    "lost": "the reference failed",
}


def profile_json(report: ProfileReport) -> dict[str, Any]:
    """The object of the schema ``intruscope.profile/1``.

    Args:
        report: The profile.

    Returns:
        Plain data. Times are in seconds, memory in bytes.
    """
    return {
        "schema": SCHEMA,
        "base": report.base,
        "revision": report.revision,
        "head": report.head,
        "num_parameters": report.num_parameters,
        "tokens": "random, uniform over the vocabulary, no padding",
        "memory": MEMORY_HOLDS,
        "reference": report.reference,
        "level": report.level,
        "num_rounds": report.num_rounds,
        "stopped": report.stopped,
        "seconds": report.seconds,
        "asked": plain(report.settings),
        "settings": [_setting(result) for result in report.results],
        "recommendations": plain(report.recommendations),
        "environment": plain(report.environment),
    }


def _setting(result: SettingReport) -> dict[str, Any]:
    return {
        **plain(result.candidate),
        "status": "done" if result.failure is None else "failed",
        "failure": result.failure,
        "num_trained": result.num_trained,
        "num_matrices": result.num_matrices,
        "shapes": [{**plain(cell), "resident_bytes": cell.memory.resident_bytes} for cell in result.cells],
    }


def profile_summary(report: ProfileReport) -> list[RenderableType]:
    """Terminal output: the recommendation, a table for every shape, and how it was measured."""
    parts: list[RenderableType] = []
    for found in report.recommendations:
        parts += [
            Text(found.sentence, style="bold"),
            _table(report, Shape(found.batch, found.length)),
            Text(found.reason, style="dim"),
            Text(),
        ]
    for result in report.results:
        if result.failure is not None:
            said = Text(f"failed  {printable(result.candidate.label)}: ", style="yellow")
            parts.append(said.append(printable_text(result.failure), style="default"))
    parts.append(Text(_stands_on(report), style="dim"))
    return parts


def _table(report: ProfileReport, shape: Shape) -> Table:
    against = "full fine-tuning" if report.reference == FULL else "the first setting"
    table = Table(
        title=f"{shape.batch} x {shape.length} tokens; time in ms, memory in MiB, ratios to {against}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("setting")
    for name in (
        "step, ratio",
        "forward",
        "backward",
        "optimiser",
        "memory",
        "ratio",
        "resident",
        "tokens/s",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for result, cell in _cells(report, shape):
        table.add_row(
            Text(printable(result.candidate.label)),
            Text(
                "" if cell.ratios is None else spread(cell.ratios["step"]),
                style=_STYLE[cell.verdict] if cell.verdict else "",
            ),
            *(_milliseconds(cell.seconds[phase].estimate) for phase in PHASES),
            f"{cell.memory.tensor_bytes / 2**20:,.0f}",
            "" if cell.memory_ratio is None else f"{cell.memory_ratio:.2f}",
            f"{cell.memory.resident_bytes / 2**20:,.0f}",
            f"{cell.tokens_per_second.estimate:,.0f}",
        )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f}"


def _cells(report: ProfileReport, shape: Shape) -> Iterator[tuple[SettingReport, ShapeReport]]:
    for result in report.results:
        for cell in result.cells:
            if (cell.batch, cell.length) == shape:
                yield result, cell


def _stands_on(report: ProfileReport) -> str:
    asked = report.settings
    how = ["bfloat16 over float32 weights" if asked.bf16 else "float32"]
    how += ["gradient checkpointing"] if asked.gradient_checkpointing else []
    embeddings = "trains the embeddings too" if asked.train_embeddings else "leaves the embeddings frozen"
    on = (
        asked.device
        if asked.device != "cpu"
        else f"{asked.threads} thread{'' if asked.threads == 1 else 's'}"
    )
    return "\n".join(
        [
            f"{printable(report.base)}: {report.num_parameters:,} parameters, {report.head} head, "
            f"{', '.join(how)}, {on}; random tokens; full fine-tuning {embeddings}",
            f"{report.num_rounds} rounds in random order in {report.seconds:.0f} s "
            f"({_STOPPED[report.stopped]}); medians; all ratios hold jointly at {percent(0.95)}",
            MEMORY_HOLDS,
        ]
    )


def write_profile_plots(report: ProfileReport, folder: Path) -> tuple[str, ...]:
    """Write the steps and the memory of every setting as ``profile.png`` and ``profile.svg``.

    Args:
        report: The profile.
        folder: Made if it does not exist.

    Returns:
        Names of the files.

    Raises:
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """
    panels = [_panel(report, Shape(found.batch, found.length)) for found in report.recommendations]

    def draw() -> list[tuple[str, object]]:
        figure = profile_figure(
            [panel for panel in panels if panel.bars], title=report.base.rstrip("/").rpartition("/")[2]
        )
        return [] if figure is None else [("profile", figure)]

    return write_figures(draw, folder)


def _panel(report: ProfileReport, shape: Shape) -> Panel:
    return Panel(
        title=f"{shape.batch} x {shape.length} tokens",
        bars=tuple(
            Bar(
                label=result.candidate.label,
                phases=tuple(cell.seconds[phase].estimate for phase in PHASES),
                step=(cell.seconds["step"].low, cell.seconds["step"].high),
                ratio=None if cell.ratios is None else spread(cell.ratios["step"]),
                tensors=cell.memory.tensor_bytes,
                resident=cell.memory.resident_bytes,
            )
            for result, cell in _cells(report, shape)
        ),
    )
