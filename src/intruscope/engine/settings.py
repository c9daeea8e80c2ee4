"""How durable runs over many matrices are asked to go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from intruscope.errors import OutputConflict
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

    def make_work_dir(self) -> None:
        """Make the folder of a run that keeps several journals in it, if one is named.

        Raises:
            OutputConflict: it cannot be made.
        """
        if self.work_dir is None:
            return
        try:
            self.work_dir.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputConflict(
                f"cannot make this folder ({error.strerror})",
                remedy="choose another --work",
                file=self.work_dir,
            ) from error

    def within(self, name: str) -> RunOptions:
        """The same for a part of the run, with its own folder inside the work folder, if one is named."""
        return self if self.work_dir is None else replace(self, work_dir=self.work_dir / name)
