"""The processes of a profile as their parent sees them: one per setting, woken in turn.

Rounds that go through all settings need them all ready. In one process they would share an allocator, so that
nobody could tell whose memory it is, and one that runs out of it would take the others along. So each has a
process of its own, which waits on a pipe and takes no time while another is measured.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Self

from intruscope.engine.processes import WorkerProcess
from intruscope.errors import ResourceExhausted
from intruscope.profiling.records import Failed
from intruscope.profiling.rounds import OutOfTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORKER = "intruscope.profiling.child:answer"


class Crew:
    """One waiting process per setting; use as a context manager.

    Args:
        names: Of the settings.
        function: What each process serves.
        clock: In seconds.
        deadline: By that clock: nothing is waited for beyond it.

    Raises:
        ResourceExhausted: a process cannot be started.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        function: str = WORKER,
        clock: Callable[[], float],
        deadline: float,
    ) -> None:
        self._clock = clock
        self._deadline = deadline
        self._workers: dict[str, WorkerProcess] = {}
        try:
            for name in names:
                self._workers[name] = WorkerProcess.start(function, dict(os.environ))
        except OSError as error:
            self.close()
            raise ResourceExhausted(
                f"a worker process could not be started ({error.strerror})",
                remedy="free memory or temporary disk space, or compare fewer settings",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait until all have imported what they need; one that died is reported when it is asked.

        Raises:
            OutOfTime: the deadline passed.
        """
        for worker in self._workers.values():
            self._wait(worker)
            with contextlib.suppress(EOFError):
                worker.receive()

    def ask(self, name: str, request: Any) -> Any:
        """What the process of a setting answers; :class:`Failed` where it is no more.

        Raises:
            OutOfTime: the deadline passed before it answered.
            Exception: what its function raised.
        """
        worker = self._workers.get(name)
        if worker is None:
            return Failed("its process has ended")
        worker.send(request)
        self._wait(worker)
        try:
            kind, value = worker.receive()
        except EOFError:
            return Failed(self._workers.pop(name).end())
        if kind == "error":
            raise value
        return value

    def dismiss(self, name: str) -> None:
        """End the process of a setting, if it has not ended."""
        if name in self._workers:
            self._workers.pop(name).end()

    def _wait(self, worker: WorkerProcess) -> None:
        if not worker.has_output(max(0.0, self._deadline - self._clock())):
            raise OutOfTime

    def close(self) -> None:
        """Kill all of them: nothing that they hold is worth a wait."""
        for worker in self._workers.values():
            worker.end()
        self._workers = {}
