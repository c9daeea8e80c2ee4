"""``intruscope sweep``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.command import only
from intruscope.cli.groups import FIELD, QUIET, TEXT, Pair, TaskData
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.engine.settings import RunOptions
from intruscope.fitting.settings import FitSettings
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
    fit_task: str | None = option(
        None,
        help="Examples for the fixes that are fitted to data, disjoint from those of --task (default: a "
        "third of the task is set aside).",
        panel="Input",
        metavar="TASK",
        needs=("--controls",),
    ),
    fit_text: tuple[str, ...] = option(
        (),
        help="Text for the fixes that are fitted to data, disjoint from that of --text (default: a third of "
        "the text is set aside).",
        panel="Input",
        metavar="SOURCE",
        needs=("--controls",),
    ),
    tasks: TaskData,
    settings: SweepSettings,
    measuring: MeasureOptions,
    fitting: FitSettings,
    outputs: Annotated[Outputs, Writes("sweep")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "work_dir", "fresh")],
    quiet: bool = QUIET,
) -> None:
    """Measure what scaling the intruders down gains and costs, next to controls of the same size.

    Recommends a strength for 'intruscope repair', or says that none is worth it. With fitted or replay among
    the controls, also names the best fix of all. Writes no model. Needs the 'lab' extra.
    """
    fit_files = [*([] if fit_task is None else [fit_task]), *fit_text]
    outputs.check(pair.names, others=[options.work_dir], files=[task, *text, *fit_files])
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
            fit_task=None if fit_task is None else tasks.load(fit_task),
            fit_text=fit_text or None,
            fitting=fitting,
            options=options,
            allow_pickle=pair.allow_pickle,
            outputs=outputs.paths,
            on_progress=on_progress,
            on_notice=note,
        )
    outputs.write(report, quiet=quiet)
