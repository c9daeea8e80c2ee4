"""The folder of a chain: what it is, how far it came, and what it made.

``journal/`` says what the chain is, holds a record of everything that is finished, and keeps a second run
out; ``stages/K-TASK/`` holds the run of a stage and the body that came of it; ``chain.json`` is written last.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from intruscope.train.run_folder import claimed
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Record = dict[str, Any]


class ChainFolder:
    """An open folder; use as a context manager.

    Args:
        path: New, empty, or of the same chain when it was interrupted.
        plan: What the chain is; plain data.

    Raises:
        OutputConflict: it holds something else, another chain, or a finished one; or a run is using it.
        ResourceExhausted: it cannot be written.
    """

    def __init__(self, path: Path, plan: Record) -> None:
        self.path = path
        self._journal = claimed(path, plan, record="chain.json", what="chain")
        self._clear()

    def _clear(self) -> None:
        """Drop what was being written when an earlier process was killed."""
        for name in (".*.tmp", ".*.partial"):
            for left in list(self.path.rglob(name)):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def __enter__(self) -> ChainFolder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and not self._journal.records and not (self.path / "stages").exists():
            shutil.rmtree(self.path / "journal", ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self._journal.close()

    @property
    def records(self) -> Mapping[str, Record]:
        """Everything that is finished."""
        return self._journal.records

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        """A record, made and kept if it is not there.

        A record that was just made is given back as the journal holds it, so that a resumed chain and an
        unbroken one go on with equal data.
        """
        if key not in self._journal.records:
            self._journal.append(key, make())
        return self._journal.records[key]

    def stage(self, number: int, task: str) -> Path:
        """The folder of a stage."""
        found = self.path / "stages" / f"{number}-{task}"
        found.mkdir(parents=True, exist_ok=True)
        return found

    @property
    def pictures(self) -> Path:
        """Where the pictures go."""
        return self.path / "pictures"

    def finish(self, content: Record) -> None:
        """Write the report of the chain; from here on the folder is finished."""
        write_json_file(content, self.path / "chain.json")
