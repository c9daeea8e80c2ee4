"""``intruscope compare``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from intruscope.cli.command import Settings
from intruscope.cli.groups import ALLOW_PICKLE, FIELD, QUIET
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.compare.settings import CompareSettings
from intruscope.engine.settings import RunOptions
from intruscope.errors import IncompleteResult
from intruscope.forgetting.settings import ForgetSettings
from intruscope.options import REQUIRED, option


def compare(
    *,
    models: tuple[str, ...] = option(
        REQUIRED,
        help="The base and two or more fine-tunes (adapters or full checkpoints), or two or more adapters "
        "without their base; each a folder or org/name@revision.",
        panel="Input",
        positional=True,
        metavar="model",
    ),
    same_base: bool = option(
        False, help="Compare adapters although their configs name different bases.", panel="Input"
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    text: tuple[str, ...] = option(
        (),
        help="With a base, also measure how much the merge and its parts forget, on text like that of "
        "pretraining: a file, a glob pattern, or hf:org/name:split.",
        panel="Input",
        metavar="SOURCE",
    ),
    field: str | None = FIELD,
    settings: CompareSettings,
    measuring: Annotated[
        ForgetSettings, Settings(ForgetSettings, without=("seed", "gamma", "max_task_tokens"))
    ],
    outputs: Annotated[Outputs, Writes("compare")],
    options: RunOptions,
    quiet: bool = QUIET,
) -> None:
    """Compare fine-tunes of one base: do they get in each other's way, and what would adding them up do?

    Without the base: energies, cosines, angles between the spaces, sign conflict, and how a sum cancels or
    inflates. With it, also the intruders of each, those that they share, and those of their merge; with
    --text, how much the merge forgets. Every figure stands beside its controls.
    """
    from intruscope.compare.run import compare as run_compare

    if not text and measuring != ForgetSettings():
        note("the options for measuring losses have no effect without --text")
    outputs.check(models, others=[options.work_dir], files=text)
    with progress_bars(quiet=quiet) as on_progress:
        report = run_compare(
            *models,
            text=text or None,
            field=field,
            settings=settings,
            measuring=replace(measuring, seed=settings.seed),
            options=options,
            allow_pickle=allow_pickle,
            same_base=same_base,
            outputs=outputs.paths,
            on_progress=on_progress,
            on_notice=note,
        )
    outputs.write(report, quiet=quiet)
    if not report.complete:
        raise IncompleteResult(
            "some weights could not be compared",
            remedy="see the findings for the reasons; everything else was compared",
        )
