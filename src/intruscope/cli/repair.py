"""``intruscope repair``."""

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
from intruscope.repair.settings import RepairSettings
from intruscope.spectra.records import ScanSettings


def repair(
    *,
    pair: Pair,
    settings: RepairSettings,
    scanning: Annotated[ScanSettings, only(ScanSettings, "k", "epsilon", "prove", "seed")],
    out: Path | None = OUT,
    dry_run: bool = DRY_RUN,
    outputs: Annotated[Outputs, Writes("repair")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "memory_bytes", "work_dir", "fresh")],
    device: Literal["auto", "cpu", "cuda"] = CPU,
    quiet: bool = QUIET,
) -> None:
    """Write a copy of a fine-tuned model with its intruder dimensions scaled down.

    Give the two models, or an adapter alone, which names its own base. The inputs are never changed.
    """
    from intruscope.repair.plan import repair as make_plan

    check_cpu(device)
    check_out(out, dry_run=dry_run)
    check_beside(outputs.paths, out)
    outputs.check(pair.names, others=[options.work_dir])
    with progress_bars(quiet=quiet) as on_progress:
        plan = make_plan(
            *pair.names,
            **asdict(settings),
            seed=scanning.seed,
            settings=scanning,
            options=options,
            allow_pickle=pair.allow_pickle,
            lora_alpha=pair.lora_alpha,
            out=None if dry_run else out,
            on_progress=on_progress,
            on_notice=note,
        )
    if plan.writes == "checkpoint":
        _note_ignored(settings, is_merged=plan.merges)
    if out is not None and not dry_run:
        with progress_bars(quiet=quiet) as on_progress:
            plan.apply(out, on_progress=on_progress)
    outputs.write(plan, quiet=quiet)
    if not quiet and not outputs.on_stdout and not dry_run:
        emit(f"written: {printable(out)}\n")
    pair.check_complete(plan.survey.pairing, "are unchanged in the output")


def _note_ignored(settings: RepairSettings, *, is_merged: bool) -> None:
    """Point out options that only concern a written adapter."""
    if settings.rank != "exact" or settings.compact:
        note("--rank and --compact have no effect: the output is a full checkpoint")
    if settings.merged and not is_merged:
        note("--merged has no effect: the tuned model is a full checkpoint already")
