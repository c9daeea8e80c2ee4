"""``intruscope verify``."""

from __future__ import annotations

import math
import os
from typing import Annotated, Literal

from intruscope.cli.command import only
from intruscope.cli.groups import ALLOW_PICKLE, BASE, CPU, QUIET, check_cpu
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.engine.settings import RunOptions
from intruscope.errors import IncompleteResult, UsageError, printable
from intruscope.options import REQUIRED, option


def verify(
    *,
    base: str = BASE,
    adapter: str = option(
        REQUIRED,
        help="Adapter that MERGED should contain: a folder or org/name@revision.",
        panel="Input",
        positional=True,
    ),
    merged: str | None = option(
        None,
        help="Merged model: a full checkpoint, as a folder or org/name@revision. With --adapter, "
        "the second of two names.",
        panel="Input",
        positional=True,
    ),
    weighted: tuple[str, ...] = option(
        (),
        flag="adapter",
        help="Adapter that MERGED should contain, with its weight in the merge (default: 1).",
        panel="Input",
        metavar="NAME=WEIGHT",
    ),
    or_base: str | None = option(
        None,
        help="Second candidate for the base; the report says which of the two fits.",
        panel="Input",
        metavar="MODEL",
    ),
    lora_alpha: float | None = option(
        None,
        help="LoRA alpha, for adapter formats that do not store it.",
        panel="Input",
        above=0,
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    outputs: Annotated[Outputs, Writes("verify")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "memory_bytes", "work_dir", "fresh")],
    device: Literal["auto", "cpu", "cuda"] = CPU,
    quiet: bool = QUIET,
) -> int:
    """Check that a merged model is its base with the adapter applied.

    Every module that the adapter changes is compared with what it should be, and every other tensor with the
    base. For several adapters, name BASE and MERGED alone and give each adapter as an option with its
    weight. The exit code is 1 if anything is not as it should be, and 5 if something cannot be told.
    """
    from intruscope.verify.run import verify as run_verify

    check_cpu(device)
    named = [split_weight(each) for each in weighted]
    if merged is None:
        if not named:
            raise UsageError(
                "MERGED is missing", remedy="give three models: intruscope verify BASE ADAPTER MERGED"
            )
        adapter, merged = "", adapter
    adapters = [*([(adapter, 1.0)] if adapter else []), *named]
    outputs.check([base, *(name for name, _ in adapters), merged, or_base], others=[options.work_dir])
    with progress_bars(quiet=quiet) as on_progress:
        report = run_verify(
            base,
            [name for name, _ in adapters],
            merged,
            weights=[weight for _, weight in adapters],
            or_base=or_base,
            options=options,
            allow_pickle=allow_pickle,
            lora_alpha=lora_alpha,
            outputs=outputs.paths,
            on_progress=on_progress,
            on_notice=note,
        )
    outputs.write(report, quiet=quiet)
    if report.has_failed:
        return 1
    if report.is_open:
        raise IncompleteResult(
            "some modules or tensors could not be judged",
            remedy="see the reasons in the report",
            file=report.merged,
        )
    return 0


def split_weight(given: str) -> tuple[str, float]:
    """The name and the weight of ``NAME=WEIGHT``; the weight is 1 where it is left out.

    Raises:
        UsageError: the weight is no number other than 0.
    """
    name, equals, text = given.rpartition("=")
    if not equals or os.path.lexists(given):
        return given, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight) or weight == 0:
        raise UsageError(
            f"--adapter {printable(given)} is not of the form NAME=WEIGHT",
            remedy="write for example --adapter my-adapter=0.5, with a weight other than 0",
        )
    return name, weight
