"""``intruscope repair``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from intruscope.cli.checks import check_device, gibibytes, top, within
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Base,
    Epsilon,
    Fresh,
    LoraAlpha,
    Memory,
    Prove,
    Quiet,
    TopIntruders,
    Tuned,
    Verbose,
    Work,
    Workers,
)
from intruscope.cli.outputs import Targets, check_beside, write_record
from intruscope.cli.screen import bytes_bar, emit, matrix_progress, note, show
from intruscope.errors import IncompleteResult, UsageError, printable
from intruscope.repair.interventions import INTERVENTIONS

if TYPE_CHECKING:
    Control = str
else:
    Control = Literal[tuple(INTERVENTIONS)]


def repair(
    base: Base,
    tuned: Tuned = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the repaired model.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Share of an intruder's singular value that stays: 0 removes, 1 keeps.")
    ] = 0.7,
    which: Annotated[
        str, typer.Option(help="top (of each matrix), all, or NAME, NAME:all, NAME:0+2 (comma; * in names).")
    ] = "top",
    rank: Annotated[str, typer.Option(help="Of a written adapter: exact, same, or a number.")] = "exact",
    compact: Annotated[
        bool, typer.Option("--compact", help="Let only edited modules grow (rank_pattern).")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write a full checkpoint where an adapter is given.")
    ] = False,
    control: Annotated[
        Control, typer.Option(help="The intervention; all but the first are controls.")
    ] = "intruders",
    k: TopIntruders = "10",
    epsilon: Epsilon = 0.5,
    seed: Annotated[int, typer.Option(help="Of every random block and direction.")] = 0,
    prove: Prove = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find and print what would change.")] = False,
    json: Annotated[str | None, typer.Option(help="Write the plan as JSON; - for stdout.")] = None,
    work: Work = None,
    fresh: Fresh = False,
    workers: Workers = None,
    memory: Memory = None,
    allow_pickle: AllowPickle = False,
    lora_alpha: LoraAlpha = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; a repair needs no GPU.")
    ] = "auto",
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Write a copy of a fine-tuned model with its intruder dimensions turned down.

    BASE TUNED names two models; a single adapter names its base itself. Inputs are never written to.
    """  # fmt: skip
    from intruscope.repair.interventions import checked_strength
    from intruscope.repair.manifest import plan_record
    from intruscope.repair.plan import repair as make_plan
    from intruscope.spectra.records import ScanSettings
    from intruscope.spectra.scan import RunOptions

    checked_strength(strength)
    memory_bytes = gibibytes(memory, "--memory")
    check_device(device)
    if out is None and not dry_run:
        raise UsageError("got no output, expected one", remedy="name a new folder: -o OUT, or add --dry-run")
    targets = Targets(json=json, csv=None, parquet=None, html=None, plots=None, with_maps=False)
    targets.check([base, tuned], work=work)
    check_beside(targets.paths, out)
    with matrix_progress("surveying", quiet=quiet) as on_progress:
        plan = make_plan(
            base,
            tuned,
            strength=strength,
            which=which,
            control=control,
            rank=_rank(rank),
            compact=compact,
            merged=merged,
            seed=seed,
            settings=ScanSettings(k=top(k), epsilon=within(epsilon, "--epsilon"), seed=seed, prove=prove),
            options=RunOptions(
                workers=workers,
                memory_bytes=memory_bytes,
                work_dir=work,
                fresh=fresh,
            ),
            allow_pickle=allow_pickle,
            lora_alpha=lora_alpha,
            out=None if dry_run else out,
            on_progress=on_progress,
            on_notice=note,
        )
    if not dry_run:
        assert out is not None
        with bytes_bar(quiet=quiet) as on_bytes:
            plan.apply(out, on_progress=on_bytes)
    write_record(plan_record(plan), json)
    if not quiet and json != "-":
        from intruscope.report.repair import repair_table

        show(repair_table(plan))
        if not dry_run:
            emit(f"written: {printable(out)}\n")
    if not plan.survey.pairing.complete:
        raise IncompleteResult(
            "got weights that could not be matched or decoded and are as they were, expected to reach all",
            remedy=f"see what with intruscope scan {printable(base)} {printable(tuned or '')}".rstrip(),
            file=plan.survey.pairing.tuned,
        )


def _rank(text: str) -> Any:
    if text in ("exact", "same"):
        return text
    if text.isdecimal() and len(text) < 10 and int(text) > 0:
        return int(text)
    raise UsageError(
        f"--rank is '{printable(text)}', expected exact, same or a positive number",
        remedy="leave --rank out for the exact one",
    )
