"""``intruscope diagnose``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.command import only
from intruscope.cli.groups import FIELD, QUIET, Pair, TaskData
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.diagnose.settings import DiagnoseSettings
from intruscope.engine.settings import RunOptions
from intruscope.errors import IncompleteResult
from intruscope.forgetting.settings import SkillSettings
from intruscope.options import option
from intruscope.sweep.settings import MeasureOptions


def diagnose(
    *,
    pair: Annotated[Pair, only(Pair, "base", "tuned", "allow_pickle")],
    text: tuple[str, ...] = option(
        (),
        help="Text to measure forgetting on, like that of pretraining: a file, a glob pattern, or "
        "hf:org/name:split.",
        panel="Input",
        metavar="SOURCE",
    ),
    field: str | None = FIELD,
    task: str | None = option(
        None,
        help="The task of the fine-tune, to judge fixes by: a built-in name such as sst2 or mnli, a table, "
        "or held-out text.",
        panel="Input",
        metavar="TASK",
    ),
    tasks: TaskData,
    skills: SkillSettings,
    settings: DiagnoseSettings,
    measuring: MeasureOptions,
    outputs: Annotated[Outputs, Writes("diagnose")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "work_dir", "fresh")],
    quiet: bool = QUIET,
) -> None:
    """Did the fine-tune break the model, and what now? A scan, the forgetting and the best fixes in one go.

    Each part runs if its data are given: forgetting needs a text, skills need harness tasks, and fixes need a
    text and a task. Prints the commands to run next, and writes no model.
    """
    outputs.check(
        pair.names, others=[options.work_dir], files=[*text, *([task] if task else []), *skills.skills]
    )
    from intruscope.diagnose.commands import option_words
    from intruscope.diagnose.run import diagnose as run_diagnose

    with progress_bars(quiet=quiet) as on_progress:
        report = run_diagnose(
            *pair.names,
            text=text,
            field=field,
            task=tasks.load(task) if task else None,
            task_words=["--task", task, *option_words(tasks)] if task else None,
            skills=skills,
            settings=settings,
            measuring=measuring,
            options=options,
            allow_pickle=pair.allow_pickle,
            outputs=outputs.paths,
            on_progress=on_progress,
            on_notice=note,
        )
    outputs.write(report, quiet=quiet)
    if not report.complete:
        raise IncompleteResult(
            "some of what was asked for could not be measured",
            remedy="see the reasons above; everything else is in the report",
        )
