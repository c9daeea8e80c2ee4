"""How durable runs over many matrices are asked to go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intruscope.options import documented, option


@documented
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run goes; nothing here changes a figure."""

    workers: int | None = option(
        None,
        help="Number of worker processes (default: one per core).",
        about="Number of worker processes; one per core by default. 0 runs in this process, one matrix after "
        "another, without deadlines.",
        minimum=1,
        maximum=1024,
        panel="How it runs",
    )
    memory_bytes: int | None = option(
        None,
        flag="memory",
        help="Memory limit in GiB for the matrices in progress.",
        about="Memory limit in bytes for the matrices in progress together.",
        above=0,
        maximum=10**6,
        scale=2**30,
        panel="How it runs",
        metavar="GIB",
    )
    deadline_seconds: float | None = option(
        None,
        flag="deadline",
        help="Time limit per matrix in seconds; a matrix that exceeds it is reported as unfinished.",
        above=0,
        panel="How it runs",
        metavar="SECONDS",
    )
    work_dir: Path | None = option(
        None,
        flag="work",
        help="Folder for the journal that makes the run resumable (default: in the user's cache).",
        panel="How it runs",
        metavar="FOLDER",
    )
    fresh: bool = option(
        False, help="Start over: discard the results of an interrupted run.", panel="How it runs"
    )
