"""``intruscope extract``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import Annotated, Literal

import typer

from intruscope.cli.checks import check_device, gibibytes, top, within
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Base,
    Epsilon,
    Fresh,
    LoraAlpha,
    Memory,
    Plots,
    Prove,
    Quiet,
    TopIntruders,
    Tuned,
    Verbose,
    Work,
    Workers,
)
from intruscope.cli.outputs import Targets, check_beside, write_record
from intruscope.cli.screen import bytes_bar, emit, note, show, stage_progress
from intruscope.errors import IncompleteResult, UsageError, printable


def extract(
    base: Base,
    tuned: Tuned = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder for the adapter.")] = None,
    rank: Annotated[int | None, typer.Option(help="One rank for all matrices.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Or the share of its squared update that each matrix keeps.")
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="Or the relative error that each matrix has at most.")
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(help="Or numbers in all, spent where they lower the error most.")
    ] = None,
    which: Annotated[
        str, typer.Option(help="linear (layers of the blocks), all, or NAME,NAME (* in names).")
    ] = "linear",
    compact: Annotated[
        bool, typer.Option("--compact", help="Keep each matrix's own rank (rank_pattern).")
    ] = False,
    save_rest: Annotated[
        bool, typer.Option("--save-rest", help="Save norms, biases and heads that changed, as PEFT can.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the factors in the file.")
    ] = "float32",
    k: TopIntruders = "10",
    epsilon: Epsilon = 0.5,
    seed: Annotated[int, typer.Option(help="Of every random block.")] = 0,
    prove: Prove = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print ranks and errors, write nothing.")
    ] = False,
    json: Annotated[str | None, typer.Option(help="Write the plan as JSON; - for stdout.")] = None,
    plots: Plots = None,
    work: Work = None,
    fresh: Fresh = False,
    workers: Workers = None,
    memory: Memory = None,
    allow_pickle: AllowPickle = False,
    lora_alpha: LoraAlpha = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; an extraction needs no GPU.")
    ] = "auto",
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Turn a fine-tuned model into a LoRA adapter of the base, with its error.

    BASE TUNED names two models. The adapter is the closest of its ranks; PEFT and servers load it.
    """  # fmt: skip
    from intruscope.extract.checks import checked_choice
    from intruscope.extract.plan import extract as make_plan
    from intruscope.extract.write import plan_record
    from intruscope.spectra.records import ScanSettings
    from intruscope.spectra.scan import RunOptions

    checked_choice(rank=rank, energy=energy, error=error, parameters=parameters)
    memory_bytes = gibibytes(memory, "--memory")
    check_device(device)
    if out is None and not dry_run:
        raise UsageError("got no output, expected one", remedy="name a new folder: -o OUT, or add --dry-run")
    targets = Targets(json=json, csv=None, parquet=None, html=None, plots=plots, with_maps=False)
    targets.check([base, tuned], work=work)
    check_beside(targets.paths, out)
    with stage_progress(quiet=quiet) as on_progress:
        plan = make_plan(
            base,
            tuned,
            rank=rank,
            energy=energy,
            error=error,
            parameters=parameters,
            which=which,
            compact=compact,
            save_rest=save_rest,
            dtype=dtype,
            settings=ScanSettings(k=top(k), epsilon=within(epsilon, "--epsilon"), seed=seed, prove=prove),
            options=RunOptions(workers=workers, memory_bytes=memory_bytes, work_dir=work, fresh=fresh),
            allow_pickle=allow_pickle,
            lora_alpha=lora_alpha,
            out=None if dry_run else out,
            on_progress=on_progress,
            on_notice=note,
        )
    written = not dry_run and not plan.is_empty
    if written:
        assert out is not None
        with bytes_bar(quiet=quiet) as on_bytes:
            plan.apply(out, on_progress=on_bytes)
    write_record(plan_record(plan), json)
    if plots is not None and not plan.is_empty:
        from intruscope.report.extract import write_curve

        write_curve(plan, plots)
    if not quiet and json != "-":
        from intruscope.report.extract import extract_table

        show(extract_table(plan))
        if written:
            emit(f"written: {printable(out)}\n")
    if not plan.pairing.complete:
        raise IncompleteResult(
            "got weights that could not be matched or decoded and are in no adapter, expected to reach all",
            remedy=f"see what with intruscope scan {printable(base)} {printable(tuned or '')}".rstrip(),
            file=plan.pairing.tuned,
        )
