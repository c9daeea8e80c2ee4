"""``intruscope forget``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from intruscope.cli.command import only
from intruscope.cli.groups import FIELD, QUIET, TEXT, Pair, TaskData
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.errors import IncompleteResult
from intruscope.forgetting.settings import ForgetSettings
from intruscope.options import option


def forget(
    *,
    pair: Annotated[Pair, only(Pair, "base", "tuned", "allow_pickle")],
    text: tuple[str, ...] = TEXT,
    field: str | None = FIELD,
    task: tuple[str, ...] = option(
        (),
        help="Also score this task: a built-in name such as sst2 or mnli, or a file.",
        panel="Input",
        metavar="TASK",
    ),
    tasks: TaskData,
    settings: ForgetSettings,
    outputs: Annotated[Outputs, Writes("forget")],
    quiet: bool = QUIET,
) -> None:
    """Measure how much a fine-tune forgot: its loss on text minus the base's, with a confidence interval.

    Use text like that of pretraining, which neither model was fine-tuned on. Needs the 'lab' extra.
    """
    outputs.check(pair.names, files=[*text, *task])
    from intruscope.forgetting.forget import forget as run_forget

    with progress_bars(quiet=quiet) as on_progress:
        report = run_forget(
            *pair.names,
            **asdict(settings),
            text=text,
            field=field,
            tasks=[tasks.load(name) for name in task],
            allow_pickle=pair.allow_pickle,
            on_notice=note,
            on_progress=on_progress,
        )
    outputs.write(report, quiet=quiet)
    if report.findings:
        raise IncompleteResult(
            f"{len(report.findings)} of {len(task)} tasks could not be scored",
            remedy="see the findings for the reasons; forgetting was measured",
        )
