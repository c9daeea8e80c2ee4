"""``intruscope extract``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from intruscope.cli.command import only
from intruscope.cli.groups import CPU, DRY_RUN, OUT, QUIET, Pair, check_cpu, check_out
from intruscope.cli.outputs import Outputs, Writes, check_beside
from intruscope.cli.screen import emit, note, progress_bars
from intruscope.engine.settings import RunOptions
from intruscope.errors import printable
from intruscope.extract.settings import ExtractSettings
from intruscope.spectra.records import ScanSettings


def extract(
    *,
    pair: Pair,
    settings: ExtractSettings,
    scanning: Annotated[ScanSettings, only(ScanSettings, "k", "epsilon", "prove", "seed")],
    out: Path | None = OUT,
    dry_run: bool = DRY_RUN,
    outputs: Annotated[Outputs, Writes("extract")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "memory_bytes", "work_dir", "fresh")],
    device: Literal["auto", "cpu", "cuda"] = CPU,
    quiet: bool = QUIET,
) -> None:
    """Turn a fine-tuned model into a LoRA adapter of its base, and report the error.

    Choose the ranks with one of --rank, --energy, --error and --parameters. The adapter is the best possible
    one at its ranks and loads in PEFT and in inference servers.
    """
    from intruscope.extract.checks import checked_choice
    from intruscope.extract.plan import extract as make_plan

    checked_choice(
        rank=settings.rank, energy=settings.energy, error=settings.error, parameters=settings.parameters
    )
    check_cpu(device)
    check_out(out, dry_run=dry_run)
    check_beside(outputs.paths, out)
    outputs.check(pair.names, others=[options.work_dir])
    with progress_bars(quiet=quiet) as on_progress:
        plan = make_plan(
            *pair.names,
            **asdict(settings),
            settings=scanning,
            options=options,
            allow_pickle=pair.allow_pickle,
            lora_alpha=pair.lora_alpha,
            out=None if dry_run else out,
            on_progress=on_progress,
            on_notice=note,
        )
    written = out is not None and not dry_run and not plan.is_empty
    if out is not None and written:
        with progress_bars(quiet=quiet) as on_progress:
            plan.apply(out, on_progress=on_progress)
    outputs.without(["plots"] if plan.is_empty else []).write(plan, quiet=quiet)
    if written and not quiet and not outputs.on_stdout:
        emit(f"written: {printable(out)}\n")
    pair.check_complete(plan.pairing, "are missing from the adapter")
