"""``intruscope cache``."""

from __future__ import annotations

from intruscope.cli.screen import emit
from intruscope.errors import printable
from intruscope.options import option


def cache(
    prune: float | None = option(
        None,
        help="Remove the journals of runs unused for this many days.",
        panel="What to compute",
        metavar="DAYS",
        minimum=0,
    ),
) -> None:
    """List the journals in the user's cache, from which interrupted runs resume, or remove old ones."""
    from intruscope.engine.journal import CachedRun, cache_folder, cached_runs, prune_cache

    runs = cached_runs() if prune is None else prune_cache(days=prune)
    total = sum(run.num_bytes for run in runs) / 2**20

    def line(run: CachedRun) -> str:
        models = " -> ".join(printable(model) for model in run.models) or "unknown inputs"
        return f"{run.num_bytes / 2**20:9.2f} MiB  {run.idle_seconds / 86400:7.1f} days  {models}"

    done = "in" if prune is None else "removed from"
    emit("\n".join([*map(line, runs), f"{total:9.2f} MiB  {len(runs)} runs {done} {cache_folder()}"]) + "\n")
