"""``intruscope profile``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.checks import require_lab, warn_of_bfloat16
from intruscope.cli.groups import ALLOW_PICKLE, BASE, QUIET
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import progress_bars
from intruscope.profiling.records import ProfileSettings


def profile(
    settings: ProfileSettings,
    outputs: Annotated[Outputs, Writes("profile")],
    base: str = BASE,
    allow_pickle: bool = ALLOW_PICKLE,
    quiet: bool = QUIET,
) -> int:
    """Measure what a training step costs with each method, and whether LoRA is faster on this machine.

    Trains on random tokens and keeps nothing. Needs the 'lab' extra.
    """
    outputs.check([base])
    from intruscope.methods.registry import find

    for method in settings.methods or ():
        find(method)
    require_lab()
    if not quiet:
        warn_of_bfloat16(settings.bf16)
    from intruscope.profiling.profile import profile as run_profile

    with progress_bars(quiet=quiet) as on_progress:
        report = run_profile(base, settings=settings, allow_pickle=allow_pickle, on_progress=on_progress)
    outputs.write(report, quiet=quiet)
    return 5 if any(result.failure is not None for result in report.results) else 0
