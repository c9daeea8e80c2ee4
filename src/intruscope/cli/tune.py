"""``intruscope tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from intruscope.cli.checks import method_options, task_of, tell_of_idle_gpus, warn_of_bfloat16
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    Accumulate,
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
    Rank,
    Rate,
    Recipe,
    SaveEvery,
    Seed,
    Steps,
    Target,
    TaskFields,
    Tokenizer,
    Verbose,
)
from intruscope.cli.screen import note, show, stage_progress
from intruscope.errors import UsageError
from intruscope.train.processes import is_first, report_once


@report_once()
def tune(
    base: Annotated[str, typer.Argument(help="Model before: path or org/name@revision.")],
    method: Method,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same again goes on where it stopped.")],
    task: Annotated[
        str | None, typer.Option(help="Task: sst2, mnli ..., a file, or hf:org/name:split.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Or text for a language model: file, pattern, or hf:org/name.")
    ] = None,
    eval: Annotated[str | None, typer.Option(help="Task to score after every epoch.")] = None,
    data: Data = None,
    task_fields: TaskFields = None,
    labels: Annotated[str | None, typer.Option(help="Names of the classes, in order.")] = None,
    field: Field = None,
    rank: Rank = None,
    alpha: Alpha = None,
    option: MethodOption = None,
    target: Target = None,
    recipe: Recipe = "paper",
    lr: Rate = None,
    examples: Examples = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = 1,
    max_length: MaxLength = None,
    group_by_length: GroupByLength = False,
    bf16: Bf16 = False,
    seed: Seed = 0,
    save_every: SaveEvery = 500,
    watch: Annotated[int, typer.Option(min=0, help="Steps between looks for intruders; 0 for none.")] = 50,
    forget_text: Annotated[
        list[str] | None, typer.Option(help="Text on which every look measures forgetting.")
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Where transformers logs besides: tensorboard, wandb ...")
    ] = None,
    tokenizer: Tokenizer = None,
    allow_pickle: AllowPickle = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Train a model on a task or on text by any method, and watch intruders being born.

    Needs the 'lab' extra. Numbers that are not given are the paper's.
    """
    if (task is None) == (not text):
        raise UsageError(
            "got " + ("no data" if task is None else "a task and a text") + ", expected one of them",
            remedy="name a task with --task, or text with --text",
        )
    given = method_options(option, rank=rank, alpha=alpha)
    from intruscope.methods.registry import find

    found = find(method)
    found.options(given)
    from intruscope.adapters.live_models import require
    from intruscope.weights.names import parse_name
    from intruscope.weights.output import check_output

    for package in ("transformers", "peft", "accelerate"):
        require(package)
    name = parse_name(base)
    inputs = [*(text or []), *(forget_text or []), *[each for each in (task, eval) if each is not None]]
    check_output(out, [*([name.path] if name.path else []), *(Path(f) for f in inputs if Path(f).is_file())])
    if is_first() and not quiet:
        warn_of_bfloat16(bf16)
        tell_of_idle_gpus("accelerate launch --multi_gpu -m intruscope tune ...")
    from intruscope.forgetting.texts import read_texts
    from intruscope.train.recipes import find_recipe
    from intruscope.train.settings import TuneSettings
    from intruscope.train.tune import tune as run_tune

    named: dict[str, Any] = {"fields": task_fields, "labels": labels, "data": data}
    settings = TuneSettings(
        method=method,
        options=given,
        recipe=find_recipe(recipe),
        rate=lr,
        examples=examples,
        epochs=epochs,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        max_length=max_length,
        group_by_length=group_by_length,
        targets=tuple(target or ()),
        bf16=bf16,
        seed=seed,
        save_every=save_every,
        watch_every=watch,
        report_to=tuple(report_to or ()),
    )
    given_data = (
        task_of(task, split="train", **named) if task is not None else read_texts(text or [], field=field)
    )
    quiet = quiet or not is_first()
    with stage_progress(quiet=quiet) as on_progress:
        report = run_tune(
            base,
            out=out,
            settings=settings,
            data=given_data,
            held_out=task_of(eval, **named) if eval is not None else None,
            forget_text=forget_text or (),
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            on_progress=on_progress,
        )
    if not quiet:
        show([_summary(report)])
        if settings.watch_every and report.watch.get("intruders/count"):
            note(f"pictures of the intruders' lives are in {out / 'intruders'}")


def _summary(report: object) -> str:
    from intruscope.train.settings import TuneReport

    assert isinstance(report, TuneReport)
    lines = [
        f"{report.steps} steps in {report.seconds:.0f} s, {report.num_trained:,} numbers trained",
        *([f"loss {report.loss:.4f}"] if report.loss is not None else []),
        *(
            [f"accuracy {report.accuracy[-1]:.4f} (best {max(report.accuracy):.4f})"]
            if report.accuracy
            else []
        ),
        *([f"{report.watch['intruders/count']:.0f} intruders"] if report.watch else []),
        *(
            [f"forgetting {report.watch['intruders/forgetting']:+.4f} nats per token"]
            if "intruders/forgetting" in report.watch
            else []
        ),
        f"in {report.model}",
    ]
    return "\n".join(lines)
