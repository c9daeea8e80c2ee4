"""``intruscope cache``."""

from __future__ import annotations

from typing import Annotated

import typer

from intruscope.cli.checks import above_zero
from intruscope.cli.screen import emit
from intruscope.errors import printable


def cache(
    prune: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="Remove the journals of runs unused for this many days."),
    ] = None,
) -> None:
    """List the journals in the user's cache, from which interrupted runs resume, or remove old ones."""
    from intruscope.engine.journal import CachedRun, cache_folder, cached_runs, prune_cache

    if prune != 0:
        above_zero(prune, "--prune")
    runs = cached_runs() if prune is None else prune_cache(days=prune)
    total = sum(run.num_bytes for run in runs) / 2**20

    def line(run: CachedRun) -> str:
        models = " -> ".join(printable(model) for model in run.models) or "unknown inputs"
        return f"{run.num_bytes / 2**20:9.2f} MiB  {run.idle_seconds / 86400:7.1f} days  {models}"

    done = "in" if prune is None else "removed from"
    emit("\n".join([*map(line, runs), f"{total:9.2f} MiB  {len(runs)} runs {done} {cache_folder()}"]) + "\n")
