"""``intruscope chain``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intruscope.cli.checks import method_options, warn_of_bfloat16
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Alpha,
    Batch,
    Bf16,
    Data,
    Epochs,
    Examples,
    Field,
    GroupByLength,
    MaxLength,
    Method,
    MethodOption,
    Quiet,
    Rank,
    Rate,
    ReportJson,
    SaveEvery,
    Seed,
    Steps,
    Target,
    Tokenizer,
    Verbose,
    Workers,
)
from intruscope.cli.outputs import Targets
from intruscope.cli.screen import emit, note, show, stage_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.sequence.records import ChainTask

_WIDTH = 100


def chain(
    base: Annotated[str, typer.Argument(help="Model before: path or org/name@revision.")],
    method: Method,
    tasks: Annotated[str, typer.Option(help="Short names of tasks in order, with commas: sst2,mnli,qqp.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the chain; the same command again goes on where it stopped.")
    ],
    between: Annotated[
        Literal["merge", "keep"],
        typer.Option(help="Merge the update and start anew, or keep the adapter and go on with it."),
    ] = "merge",
    data: Data = None,
    rank: Rank = None,
    alpha: Alpha = None,
    option: MethodOption = None,
    target: Target = None,
    lr: Rate = None,
    examples: Examples = None,
    head_examples: Annotated[
        int, typer.Option(min=2, help="Training examples of each task that its heads are fitted on.")
    ] = 1000,
    eval_examples: Annotated[
        int | None, typer.Option(min=2, help="Score on so many held-out examples of each task at most.")
    ] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    max_length: MaxLength = None,
    group_by_length: GroupByLength = False,
    bf16: Bf16 = False,
    seed: Seed = 0,
    save_every: SaveEvery = 500,
    text: Annotated[
        list[str] | None, typer.Option(help="Text on which forgetting is measured after every task.")
    ] = None,
    field: Field = None,
    max_sequences: Annotated[
        int | None, typer.Option(min=2, help="Of the text at most so many, spread evenly.")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the merged model of every stage, not the last alone.")
    ] = False,
    workers: Workers = None,
    json: ReportJson = None,
    tokenizer: Tokenizer = None,
    allow_pickle: AllowPickle = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Train task after task, and show what earlier tasks lose and what the weights accumulate.

    After each task the update is merged, every task is scored by a new head on the frozen body, and the body
    is scanned against the original base. Needs the 'lab' extra. Numbers that are not given are the paper's.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    given = method_options(option, rank=rank, alpha=alpha)
    from intruscope.adapters.live_models import require
    from intruscope.methods.registry import find

    find(method).options(given)
    for package in ("transformers", "peft", "accelerate"):
        require(package)
    targets = Targets(json=json, csv=None, parquet=None, html=None, plots=None, with_maps=False)
    files = [*(text or []), *([str(data)] if data is not None else [])]
    targets.check([base], work=out, files=files)
    from intruscope.sequence.plan import checked_method, checked_names

    checked_method(method, between)
    checked_names(names)
    loaded = _tasks(names, data)
    if not quiet:
        warn_of_bfloat16(bf16)
    from intruscope.forgetting.texts import read_texts
    from intruscope.sequence.chain import chain as run_chain
    from intruscope.sequence.records import ChainSettings
    from intruscope.train.settings import TuneSettings

    settings = ChainSettings(
        training=TuneSettings(
            method=method,
            options=given,
            rate=lr,
            examples=examples,
            epochs=epochs,
            steps=steps,
            batch=batch,
            max_length=max_length,
            group_by_length=group_by_length,
            targets=tuple(target or ()),
            bf16=bf16,
            seed=seed,
            save_every=save_every,
            watch_every=0,  # every stage is scanned when it ends
        ),
        between=between,
        num_head_examples=head_examples,
        num_eval_examples=eval_examples,
        max_sequences=max_sequences,
        workers=workers,
        keep_models=keep_models,
    )
    with stage_progress(quiet=quiet) as on_progress:
        report = run_chain(
            base,
            tasks=loaded,
            out=out,
            settings=settings,
            text=read_texts(text, field=field) if text else None,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            on_progress=on_progress,
        )
    from intruscope.report.sequence import chain_summary, write_chain

    if json == "-":
        from json import dumps

        from intruscope.sequence.records import chain_json

        emit(dumps(chain_json(report), allow_nan=False) + "\n")
    elif targets.json_file is not None:
        write_chain(report, targets.json_file)
    if not quiet and json != "-":
        show(chain_summary(report), width=_WIDTH)
        note(f"pictures are in {out / 'pictures'}, the last model in {out / report.model}")


def _tasks(names: Sequence[str], data: Path | None) -> list[ChainTask]:
    """Both sides of every task, read before anything is trained.

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
