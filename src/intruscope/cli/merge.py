"""``intruscope merge``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from intruscope.cli.groups import ALLOW_PICKLE, BASE, DRY_RUN, OUT, QUIET, check_out
from intruscope.cli.outputs import Outputs, Writes, check_beside
from intruscope.cli.screen import emit, progress_bars
from intruscope.errors import IncompleteResult, printable
from intruscope.merge.settings import MergeSettings
from intruscope.options import REQUIRED, option


def merge(
    *,
    base: str = BASE,
    tuned: tuple[str, ...] = option(
        REQUIRED,
        help="Fine-tunes of the base: adapters or full checkpoints, as folders or org/name@revision.",
        panel="Input",
        positional=True,
    ),
    same_base: bool = option(
        False,
        help="The adapters are of this base, although their configs name different ones.",
        panel="Input",
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    settings: MergeSettings,
    out: Path | None = OUT,
    dry_run: bool = DRY_RUN,
    outputs: Annotated[Outputs, Writes("merge")],
    quiet: bool = QUIET,
) -> None:
    """Merge several fine-tunes of one base into one adapter or checkpoint.

    Low-rank updates stay low-rank: the result is an ordinary LoRA of at most the sum of their ranks.
    """
    from intruscope.merge.plan import merge as make_plan

    check_out(out, dry_run=dry_run)
    check_beside(outputs.paths, out)
    outputs.check([base, *tuned])
    plan = make_plan(
        base,
        *tuned,
        allow_pickle=allow_pickle,
        same_base=same_base,
        out=None if dry_run else out,
        **asdict(settings),
    )
    report = plan.report
    if out is not None and not dry_run:
        with progress_bars(quiet=quiet) as on_progress:
            report = plan.apply(out, on_progress=on_progress)
    outputs.write(report, quiet=quiet)
    if report.out is not None and not quiet and not outputs.on_stdout:
        emit(f"written: {printable(report.out)}\n")
    for label, member in zip(report.labels, plan.members, strict=True):
        if not member.opened.pairing.complete:
            raise IncompleteResult(
                f"some weights of {printable(label)} could not be matched or decoded and are not merged",
                remedy=f"to list them, run intruscope scan {printable(base)} {printable(member.source.name)}",
            )
