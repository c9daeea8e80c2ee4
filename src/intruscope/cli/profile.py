"""``intruscope profile``."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import typer

from intruscope.cli.checks import above_zero, warn_of_bfloat16
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Plots,
    Quiet,
    ReportJson,
    Verbose,
)
from intruscope.cli.outputs import Targets, write_record
from intruscope.cli.screen import show, stage_progress

_T = TypeVar("_T")
_WIDTH = 110
"""Columns where the table goes to a file or a pipe: a setting keeps to one line."""


def profile(
    base: Annotated[str, typer.Argument(help="Model to train: path or org/name@revision. Only read.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="Besides full fine-tuning; may be repeated. Default: lora and melora."),
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(min=1, help="May be repeated; the first is the centre.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(help="all-linear, attention, query-value, or ends of module names; may be repeated."),
    ] = None,
    dropout: Annotated[
        list[float] | None, typer.Option(min=0.0, max=0.99, help="Of adapters; may be repeated.")
    ] = None,
    last_layers: Annotated[
        list[int] | None, typer.Option(help="Train so many last blocks alone; may be repeated.")
    ] = None,
    all_combinations: Annotated[
        bool,
        typer.Option(
            "--all-combinations", help="Of ranks, targets and dropouts; else one is changed at a time."
        ),
    ] = False,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences; may be repeated. [16]")] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=2, help="Tokens of each; may be repeated. [128]")
    ] = None,
    head: Annotated[
        Literal["auto", "language", "classifier"], typer.Option(help="What is learnt; auto: as the base has.")
    ] = "auto",
    train_embeddings: Annotated[
        bool, typer.Option("--train-embeddings", help="Full fine-tuning trains them too.")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; weights stay float32.")] = False,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Compute activations twice instead of keeping them."),
    ] = False,
    seconds: Annotated[float, typer.Option(help="For everything, start included.")] = 600.0,
    precision: Annotated[
        float, typer.Option(help="Enough when each ratio's interval reaches no further, as a share.")
    ] = 0.02,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each process (default: torch's choice).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or a torch device.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of tokens, starts and the order of rounds.")] = 0,
    json: ReportJson = None,
    plots: Plots = None,
    allow_pickle: AllowPickle = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Measure what a training step costs by each method, and whether LoRA is faster here.

    On random tokens; nothing is kept of the steps. Needs the 'lab' extra.
    """
    above_zero(seconds, "--seconds")
    above_zero(precision, "--precision")
    out = Targets(json=json, csv=None, parquet=None, html=None, plots=plots, with_maps=False)
    out.check([base])
    from intruscope.adapters.live_models import require
    from intruscope.methods.registry import find

    for each in method or []:
        find(each)
    for package in ("transformers", "peft", "accelerate"):
        require(package)
    if not quiet:
        warn_of_bfloat16(bf16)
    from intruscope.profiling.profile import profile as run_profile
    from intruscope.profiling.records import ProfileSettings
    from intruscope.report.profile import profile_json, profile_summary, write_profile_plots

    settings = ProfileSettings(
        methods=_given(method),
        ranks=_given(rank),
        targets=_given(targets),
        dropouts=_given(dropout),
        last_layers=_given(last_layers),
        every_combination=all_combinations,
        batches=_given(batch) or ProfileSettings.batches,
        lengths=_given(length) or ProfileSettings.lengths,
        head=head,
        train_embeddings=train_embeddings,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        device=device,
        threads=threads,
        seconds=seconds,
        precision=precision,
        seed=seed,
    )
    with stage_progress(quiet=quiet) as on_progress:
        report = run_profile(base, settings=settings, allow_pickle=allow_pickle, on_progress=on_progress)
    write_record(profile_json(report), json)
    if plots is not None:
        write_profile_plots(report, plots)
    if not quiet and json != "-":
        show(profile_summary(report), width=_WIDTH)
    if any(result.failure is not None for result in report.results):
        raise typer.Exit(5)


def _given(values: list[_T] | None) -> tuple[_T, ...] | None:
    """Each value once, in order; None where the option was not given."""
    return tuple(dict.fromkeys(values)) if values else None
