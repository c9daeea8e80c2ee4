"""``intruscope sweep``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.command import only
from intruscope.cli.groups import FIELD, QUIET, TEXT, Pair, TaskData
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.engine.settings import RunOptions
from intruscope.options import REQUIRED, option
from intruscope.sweep.records import SweepSettings
from intruscope.sweep.settings import MeasureOptions


def sweep(
    *,
    pair: Annotated[Pair, only(Pair, "base", "tuned", "allow_pickle")],
    task: str = option(
        REQUIRED,
        help="The task of the fine-tune: a built-in name such as sst2 or mnli, a table, or held-out text.",
        panel="Input",
        metavar="TASK",
    ),
    text: tuple[str, ...] = TEXT,
    field: str | None = FIELD,
    tasks: TaskData,
    settings: SweepSettings,
    measuring: MeasureOptions,
    outputs: Annotated[Outputs, Writes("sweep")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "work_dir", "fresh")],
    quiet: bool = QUIET,
) -> None:
    """Measure what scaling the intruders down gains and costs, next to controls of the same size.

    Recommends a strength for 'intruscope repair', or says that none is worth it. Writes no model. Needs the
    'lab' extra.
    """
    outputs.check(pair.names, others=[options.work_dir], files=[task, *text])
    from intruscope.sweep.measure import sweep as run_sweep
    from intruscope.sweep.run import checked_settings

    checked_settings(settings)
    with progress_bars(quiet=quiet) as on_progress:
        report = run_sweep(
            *pair.names,
            task=tasks.load(task),
            text=text,
            field=field,
            settings=settings,
            measuring=measuring,
            options=options,
            allow_pickle=pair.allow_pickle,
            outputs=outputs.paths,
            on_progress=on_progress,
            on_notice=note,
        )
    outputs.write(report, quiet=quiet)
