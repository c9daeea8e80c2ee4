"""``intruscope chain``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from intruscope.cli.checks import require_lab, warn_of_bfloat16
from intruscope.cli.command import Settings, only
from intruscope.cli.groups import (
    ALLOW_PICKLE,
    BASE,
    FIELD,
    QUIET,
    RUN_FOLDER,
    TOKENIZER,
    MethodOptions,
    TaskData,
)
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.options import REQUIRED, option
from intruscope.sequence.records import ChainSettings
from intruscope.train.settings import TuneSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.sequence.records import ChainTask

_NOT_OFFERED = (
    "accumulate", "watch_every", "report_to", "replay_weight", "replay_target", "max_forgetting", "on_budget",
)  # fmt: skip
"""Settings of training that mean nothing for the stages of a chain."""


def chain(
    *,
    base: str = BASE,
    tasks: tuple[str, ...] = option(
        REQUIRED,
        help="Built-in tasks to train on, in order, separated by commas, such as sst2,mnli,qqp.",
        panel="Input",
        comma=True,
        metavar="TASK,...",
    ),
    data: Annotated[TaskData, only(TaskData, "data")],
    text: tuple[str, ...] = option(
        (),
        help="Text to measure forgetting on after every task: a file, a glob pattern, or hf:org/name:split.",
        panel="Input",
        metavar="SOURCE",
    ),
    field: str | None = FIELD,
    tokenizer: Path | None = TOKENIZER,
    allow_pickle: bool = ALLOW_PICKLE,
    method: MethodOptions,
    training: Annotated[
        partial[TuneSettings],
        Settings(TuneSettings, without=_NOT_OFFERED, partial=True),
    ],
    settings: Annotated[partial[ChainSettings], Settings(ChainSettings, partial=True)],
    out: Path = RUN_FOLDER,
    outputs: Annotated[Outputs, Writes("chain")],
    quiet: bool = QUIET,
) -> None:
    """Train on one task after another, and measure what earlier tasks lose and what builds up in the weights.

    After each task the update is merged, every task is scored with a new head on the frozen model, and the
    model is scanned against the original base. Defaults are those of the paper. Needs the 'lab' extra.
    """
    from intruscope.forgetting.texts import read_texts
    from intruscope.methods.registry import find
    from intruscope.sequence.chain import chain as run_chain
    from intruscope.sequence.plan import checked_method, checked_names

    trained = training(options=method.given, watch_every=0)  # every stage is scanned when it ends
    find(trained.method).options(method.given)
    require_lab()
    outputs.check([base], others=[out], files=[*text, *([str(data.data)] if data.data is not None else [])])
    asked = settings(training=trained)
    checked_method(trained.method, asked.between)
    checked_names(list(tasks))
    loaded = _tasks(tasks, data.data)
    if not quiet:
        warn_of_bfloat16(trained.bf16)
    with progress_bars(quiet=quiet) as on_progress:
        report = run_chain(
            base,
            tasks=loaded,
            out=out,
            settings=asked,
            text=read_texts(list(text), field=field) if text else None,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            on_progress=on_progress,
        )
    outputs.write(report, quiet=quiet)
    if not quiet and not outputs.on_stdout:
        note(f"the pictures are in {out / 'pictures'}, the last model in {out / report.model}")


def _tasks(names: Sequence[str], data: Path | None) -> list[ChainTask]:
    """Both splits of every task, read before anything is trained.

    Raises:
        IntruscopeError: no such task, no file, or a task that has no head.
    """
    from intruscope.forgetting.named_tasks import named_task
    from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask
    from intruscope.sequence.records import ChainTask

    found = []
    for name in names:
        train, held_out = (named_task(name, split=split, folder=data) for split in ("train", "eval"))
        assert isinstance(train, (ChoiceTask, ClassificationTask))
        assert isinstance(held_out, (ChoiceTask, ClassificationTask))
        found.append(ChainTask(name=name, train=train, held_out=held_out))
    return found
