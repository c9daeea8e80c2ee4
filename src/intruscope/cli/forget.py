"""``intruscope forget``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import Annotated, Literal

import typer

from intruscope.cli.checks import task_of
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Base,
    BatchTokens,
    Context,
    Data,
    Dtype,
    Field,
    Labels,
    MaxTaskTokens,
    Quiet,
    Stride,
    TaskFields,
    Tuned,
    Verbose,
)
from intruscope.cli.outputs import Targets, write_record
from intruscope.cli.screen import note, show, stage_progress
from intruscope.errors import IncompleteResult, UsageError


def forget(
    base: Base,
    tuned: Tuned = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Text: file, pattern, or hf:org/name:split; may be repeated.")
    ] = None,
    field: Field = None,
    unit: Annotated[
        Literal["line", "running"] | None,
        typer.Option(
            help="A sequence is a line (or row), or a context of running text. Default: line for a masked "
            "language model, running for a causal one."
        ),
    ] = None,
    protocol: Annotated[
        Literal["causal", "exact", "fast"] | None,
        typer.Option(help="Masked models: exact (each token in turn; default) or fast (fixed random masks)."),
    ] = None,
    context: Context = None,
    stride: Stride = None,
    max_sequences: Annotated[
        int | None, typer.Option(min=2, help="At most so many, spread evenly over the text.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Task to score: sst2, mnli ... or a file; may be repeated.")
    ] = None,
    data: Data = None,
    task_fields: TaskFields = None,
    labels: Labels = None,
    max_task_tokens: MaxTaskTokens = None,
    json: Annotated[str | None, typer.Option(help="Write the figures as JSON; - for stdout.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the masks and the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = 4000,
    batch_tokens: BatchTokens = 4096,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or a torch device.")] = "auto",
    dtype: Dtype = "float32",
    allow_pickle: AllowPickle = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Measure how much a fine-tune forgot: its loss on text, minus the base's, with an interval.

    Give text like that of pre-training, which neither model was trained on. Needs the 'lab' extra.
    """
    if not text:
        raise UsageError("got no text, expected some to measure on", remedy="name a file with --text FILE")
    targets = Targets(json=json, csv=None, parquet=None, html=None, plots=None, with_maps=False)
    targets.check([base, tuned], files=[*text, *(task or [])])
    from intruscope.forgetting.forget import forget as run_forget
    from intruscope.report.forgetting import forgetting_summary

    tasks = [task_of(name, fields=task_fields, labels=labels, data=data) for name in task or []]
    with stage_progress(quiet=quiet) as on_progress:
        report = run_forget(
            base,
            tuned,
            text=text,
            field=field,
            protocol=protocol,
            unit=unit,
            context=context,
            stride=stride,
            max_sequences=max_sequences,
            tasks=tasks,
            max_task_tokens=max_task_tokens,
            seed=seed,
            num_resamples=resamples,
            batch_tokens=batch_tokens,
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            on_progress=on_progress,
            on_notice=note,
        )
    write_record(report.to_json(), json)
    if not quiet and json != "-":
        show(forgetting_summary(report))
    if report.findings:
        raise IncompleteResult(
            f"{len(report.findings)} of {len(tasks)} tasks could not be scored",
            remedy="see the findings for the reasons; forgetting was measured",
        )
