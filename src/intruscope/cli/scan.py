"""``intruscope scan``."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from intruscope.cli.checks import above_zero, check_device, gibibytes, not_negative, top, within
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Base,
    Epsilon,
    Force,
    Fresh,
    Html,
    LoraAlpha,
    Memory,
    Plots,
    Prove,
    Quiet,
    ReportJson,
    Tuned,
    Verbose,
    Work,
    Workers,
)
from intruscope.cli.outputs import Targets
from intruscope.cli.screen import matrix_progress, note, show
from intruscope.errors import IncompleteResult

if TYPE_CHECKING:
    from intruscope.spectra.records import ScanReport


def scan(
    base: Base,
    tuned: Tuned = None,
    k: Annotated[str, typer.Option(help="How many top vectors per matrix, or 'all' (dense).")] = "10",
    epsilon: Epsilon = 0.5,
    side: Annotated[
        Literal["left", "right", "both"], typer.Option(help="Output space, input space.")
    ] = "left",
    seed: Annotated[int, typer.Option(help="Of every random block.")] = 0,
    null: Annotated[int, typer.Option(help="Random rotations of the update: what would chance give?")] = 0,
    maps: Annotated[int, typer.Option(help="Similarity maps of the top N vectors.")] = 0,
    exact_effective_rank: Annotated[
        bool, typer.Option("--exact-effective-rank", help="Of large full updates, from all singular values.")
    ] = False,
    prove: Prove = False,
    json: ReportJson = None,
    csv: Annotated[Path | None, typer.Option(help="One row per tuned vector.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="The same rows as Parquet.")] = None,
    html: Html = None,
    plots: Plots = None,
    fail_on: Annotated[str | None, typer.Option(help="Exit with 1 if e.g. intruders>0 (comma: any).")] = None,
    ignore: Annotated[
        str | None, typer.Option(help="Codes of findings that --fail-on does not count as warnings.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, read no weights.")] = False,
    work: Work = None,
    fresh: Fresh = False,
    workers: Workers = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per worker.")] = 1,
    deadline: Annotated[float | None, typer.Option(help="Seconds per matrix.")] = None,
    memory: Memory = None,
    allow_pickle: AllowPickle = False,
    lora_alpha: LoraAlpha = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; a scan needs no GPU.")
    ] = "auto",
    force: Force = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Find the intruder dimensions that a fine-tune left in a model's weights.

    BASE TUNED compares two models; a single adapter names its base itself.
    """
    from intruscope.spectra.gates import checked, parse_gates
    from intruscope.spectra.records import ScanSettings
    from intruscope.spectra.scan import RunOptions
    from intruscope.spectra.scan import plan as make_plan
    from intruscope.spectra.scan import scan as run_scan

    gates = parse_gates(fail_on) if fail_on else ()
    settings = ScanSettings(
        k=top(k),
        epsilon=within(epsilon, "--epsilon"),
        side=side,
        seed=seed,
        null_trials=not_negative(null, "--null"),
        maps=not_negative(maps, "--maps"),
        exact_effective_rank=exact_effective_rank,
        prove=prove,
        threads=threads,
    )
    deadline, memory_bytes = above_zero(deadline, "--deadline"), gibibytes(memory, "--memory")
    check_device(device)
    targets = Targets(json=json, csv=csv, parquet=parquet, html=html, plots=plots, with_maps=maps > 0)
    targets.check([base, tuned], work=work, force=force)
    sources: dict[str, Any] = {"allow_pickle": allow_pickle, "lora_alpha": lora_alpha}
    if dry_run:
        from intruscope.report.terminal import plan_table

        show(plan_table(make_plan(base, tuned, **sources)))
        return
    options = RunOptions(
        workers=workers,
        deadline_seconds=deadline,
        memory_bytes=memory_bytes,
        work_dir=work,
        fresh=fresh,
    )
    with matrix_progress("scanning", quiet=quiet) as on_progress:
        report = run_scan(
            base,
            tuned,
            settings=settings,
            options=options,
            on_progress=on_progress,
            outputs=targets.paths,
            on_notice=note,
            **sources,
        )
    report = checked(report, gates, ignore=[code.strip() for code in (ignore or "").split(",")])
    targets.write(report, on_notice=note)
    if not quiet and json != "-":
        from intruscope.report.terminal import summary

        show(summary(report))
    _leave(report)


def _leave(report: ScanReport) -> None:
    tripped = [gate for gate in report.gates if gate.tripped]
    for gate in tripped:
        value = "unknown" if gate.value is None else f"{gate.value:g}"
        print(f"gate {gate.gate} tripped: the value is {value}", file=sys.stderr)
    if not report.complete:
        missing = sum(matrix.status != "done" for matrix in report.matrices)
        got = f"got {len(report.matrices) - missing} of {len(report.matrices)} matrices"
        fact = got if missing else f"{got}, and weights that could not be matched or decoded"
        raise IncompleteResult(
            f"{fact}, expected everything",
            remedy="see the findings and the coverage ledger",
            file=report.tuned,
        )
    if tripped:
        raise typer.Exit(1)
