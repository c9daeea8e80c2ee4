"""``intruscope inspect``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.groups import ALLOW_PICKLE, QUIET, Pair
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import progress_bars
from intruscope.errors import IncompleteResult
from intruscope.options import REQUIRED, option, shared


def inspect(
    *,
    outputs: Annotated[Outputs, Writes("inspect")],
    adapters: tuple[str, ...] = option(
        REQUIRED,
        help="Adapters: folders, files or org/name@revision. Their base is not read.",
        panel="Input",
        positional=True,
        metavar="adapter",
    ),
    lora_alpha: float | None = shared(Pair, "lora_alpha"),
    allow_pickle: bool = ALLOW_PICKLE,
    quiet: bool = QUIET,
) -> None:
    """Look into adapters without their base: spectra, ranks, scaling, duplicates, and what looks wrong.

    Intruder dimensions need the base: use intruscope scan for them.
    """
    from intruscope.inspect.run import inspect as run_inspect

    outputs.check(list(adapters))
    with progress_bars(quiet=quiet) as on_progress:
        report = run_inspect(
            *adapters, allow_pickle=allow_pickle, lora_alpha=lora_alpha, on_progress=on_progress
        )
    outputs.write(report, quiet=quiet)
    failed = sum(adapter.failure is not None for adapter in report.adapters)
    if failed:
        raise IncompleteResult(
            f"{failed} of {len(adapters)} adapters could not be read",
            remedy="the report gives the error of each",
        )
    if not report.complete:
        raise IncompleteResult(
            "some updates could not be decomposed", remedy="see the findings of the report"
        )
