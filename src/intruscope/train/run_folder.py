"""The folder of a run: what it is, how far it came, and what it made.

``journal/`` says what the run is, which checkpoints are whole, and keeps a second run out; ``checkpoints/``
are transformers'; ``model/`` appears whole at the end, and ``run.json`` after it, which is everything that is
needed to repeat the run with what came of it. A run that fails before its first checkpoint leaves nothing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import IO, TYPE_CHECKING, Any

from intruscope.engine.journal import Journal
from intruscope.errors import OutputConflict
from intruscope.weights.output import check_new_folder, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "intruscope.tune/1"
_CHECKPOINT = "checkpoint-"


class RunFolder:
    """An open folder; use as a context manager.

    Args:
        path: New, empty, or of the same run when it was interrupted.
        plan: What the run is; plain data.

    Raises:
        OutputConflict: it holds something else, another run, or a finished one; or a run is using it.
        ResourceExhausted: it cannot be written.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self.plan = plan
        if (path / "run.json").exists():
            fact = "holds a finished run, expected a new folder"
            raise OutputConflict(fact, remedy="choose another --out", file=path)
        if not (path / "journal").is_dir():
            check_new_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._journal = Journal(path / "journal", plan)
        except OutputConflict as error:
            raise OutputConflict(error.fact, remedy="choose another --out", file=path) from None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.last_checkpoint() is None:
            self.start_over()
            shutil.rmtree(self.path / "journal", ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self._journal.close()

    def start_over(self) -> None:
        """Drop what a run left that never came to a checkpoint."""
        for name in (self.checkpoints, self.looks):
            shutil.rmtree(name, ignore_errors=True)

    @property
    def checkpoints(self) -> Path:
        """Where the Trainer's checkpoints go."""
        return self.path / "checkpoints"

    @property
    def looks(self) -> Path:
        """Where the watch writes."""
        return self.path / "intruders"

    @property
    def model(self) -> Path:
        """Where the tuned model goes."""
        return self.path / "model"

    def checkpoint_done(self, step: int) -> None:
        """A checkpoint is whole."""
        self._journal.append(f"{_CHECKPOINT}{step}", {"step": step})

    def last_checkpoint(self) -> Path | None:
        """The last checkpoint that is whole and still there."""
        steps = sorted(
            (
                record["step"]
                for name, record in self._journal.records.items()
                if name.startswith(_CHECKPOINT)
            ),
            reverse=True,
        )
        for step in steps:
            found = self.checkpoints / f"{_CHECKPOINT}{step}"
            if found.is_dir():
                return found
        return None

    def finish(self, result: dict[str, Any]) -> None:
        """Write the record of the run, and drop the checkpoints that led to it."""
        content = json.dumps({"schema": SCHEMA, "plan": self.plan, **result}, indent=2, allow_nan=False)

        def write(stream: IO[bytes]) -> None:
            stream.write(content.encode() + b"\n")

        write_atomically(self.path / "run.json", write)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
