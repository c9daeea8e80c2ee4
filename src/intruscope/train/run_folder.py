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
from intruscope.train import processes
from intruscope.weights.output import check_new_folder, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = "intruscope.tune/1"
_CHECKPOINT = "checkpoint-"


def claimed(path: Path, plan: dict[str, Any], *, record: str, what: str) -> Journal:
    """Take a folder for something that is long and can go on: new, or where the same was interrupted.

    Args:
        path: Made if it does not exist.
        plan: What it is; plain data.
        record: File that is written last.
        what: One word for what it is, for messages.

    Raises:
        OutputConflict: it holds something else, another plan, or a finished one; or a process is using it.
        ResourceExhausted: it cannot be written.
    """
    if (path / record).exists():
        fact = f"the folder already holds a finished {what}"
        raise OutputConflict(fact, remedy="choose another --out", file=path)
    if not (path / "journal").is_dir():
        check_new_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        return Journal(path / "journal", plan)
    except OutputConflict as error:
        raise OutputConflict(error.fact, remedy="choose another --out", file=path) from None


class RunFolder:
    """An open folder; use as a context manager.

    Of several processes the first one holds it and writes; the others know only what it sent them.

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
        self._journal: Journal | None = None
        processes.first(self._open)

    def _open(self) -> None:
        self._journal = claimed(self.path, self.plan, record="run.json", what="run")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._journal is None:
            return
        if kind is not None and self.last_checkpoint() is None:
            self._drop()
            shutil.rmtree(self.path / "journal", ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self._journal.close()

    def begin(self) -> Path | None:
        """The checkpoint to go on from; without one, what a run left that never came to one is dropped."""

        def chosen() -> Path | None:
            last = self.last_checkpoint()
            if last is None:
                self._drop()
            return last

        return processes.first(chosen)

    def _drop(self) -> None:
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
        """A checkpoint is whole; only the first process says so."""
        assert self._journal is not None
        self._journal.append(f"{_CHECKPOINT}{step}", {"step": step})

    def last_checkpoint(self) -> Path | None:
        """The last checkpoint that is whole and still there; only the first process knows."""
        records = self._journal.records if self._journal is not None else {}
        steps = sorted(
            (record["step"] for name, record in records.items() if name.startswith(_CHECKPOINT)),
            reverse=True,
        )
        for step in steps:
            found = self.checkpoints / f"{_CHECKPOINT}{step}"
            if found.is_dir():
                return found
        return None

    def finish(self, result: dict[str, Any]) -> None:
        """Write the record of the run, and drop the checkpoints that led to it; in the first process."""
        content = json.dumps({"schema": SCHEMA, "plan": self.plan, **result}, indent=2, allow_nan=False)

        def write(stream: IO[bytes]) -> None:
            stream.write(content.encode() + b"\n")

        write_atomically(self.path / "run.json", write)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
