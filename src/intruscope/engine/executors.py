"""Where tasks run: in local worker processes, or in this process.

Workers are plain child processes, not a pool: a decomposition that LAPACK does not interrupt can be killed,
and a worker that dies takes only its own task with it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from intruscope.engine.processes import WorkerProcess
from intruscope.errors import ResourceExhausted, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.engine.tasks import Task

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MEMORY_VARIABLES = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(128 << 20))
"""Size up to which glibc keeps freed blocks. By default it adapts this limit, and the heap fragments: 2.95
GiB for two workers at the shapes of a 7B model. With 4 MiB it is 2.06, but every large tensor is mapped anew,
which takes a sixth of the time; with 128 MiB it is 2.16. Other C libraries ignore it."""
_TRIES = 2
_FALSE_STARTS = 2
"""Workers in a row that may end before they are ready."""
_LATE_IN_A_ROW = 8
"""Tasks in a row that may pass a deadline which is shorter than the start of the worker that it costs."""
_MAX_THREADS = 256


def check_threads(count: int) -> int:
    """Refuse a number of threads that a numerical library would start for hours.

    Raises:
        UsageError: it is above 256 and above the number of cores.
    """
    cores = os.cpu_count() or 1
    if count > max(_MAX_THREADS, cores):
        raise UsageError(
            f"{count:,} threads per worker are too many; this machine has {cores} cores",
            remedy="lower --threads",
        )
    return count


class Event(NamedTuple):
    """What happened to one task: ``started``, ``done``, ``retried``, ``unfinished`` or ``failed``."""

    kind: str
    key: str
    detail: Any = None


class Executor(ABC):
    """Runs one function over many payloads."""

    @abstractmethod
    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Run the tasks in any order, and yield what happens to each.

        Raises:
            Exception: whatever the function raised.
        """

    @abstractmethod
    def start(self) -> None:
        """Start what takes time before the first task, while the caller still plans."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing running."""


class InlineExecutor(Executor):
    """Runs everything in this process, one task after another, without deadlines."""

    def __init__(self, function: str) -> None:
        self._path = function

    def start(self) -> None:
        """Nothing to begin."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """See :class:`Executor`."""
        module, _, name = self._path.partition(":")
        function = getattr(importlib.import_module(module), name)
        for task in tasks:
            yield Event("started", task.key)
            yield Event("done", task.key, function(task.payload))

    def close(self) -> None:
        """Nothing runs."""


@dataclass
class _Worker(WorkerProcess):
    task: Task | None = None
    ready: bool = False
    started: float = 0.0
    gpu: str | None = None
    deadline: float = float("inf")


class LocalExecutor(Executor):
    """Runs tasks in worker processes of this machine.

    Args:
        function: ``package.module:name`` of a function of one picklable argument.
        num_workers: Maximum number of processes.
        threads_per_worker: Threads of the numerical libraries; results are repeatable for the same number.
        deadline_seconds: Per task, from when its worker is ready; a task that exceeds it is killed and
            reported as unfinished.
        memory_bytes: Limit for the estimated memory of the running tasks together.
        gpus: As ``CUDA_VISIBLE_DEVICES`` names them; each worker sees one of them, the one with the fewest
            workers. Without any, workers see what this process sees.

    Raises:
        UsageError: too many threads.
    """

    def __init__(
        self,
        function: str,
        *,
        num_workers: int,
        threads_per_worker: int = 1,
        deadline_seconds: float | None = None,
        memory_bytes: int | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        self._function = function
        self._num_workers = max(1, num_workers)
        self._threads = check_threads(threads_per_worker)
        self._deadline = deadline_seconds
        self._start_seconds = 0.0
        self._late_in_a_row = self._false_starts = 0
        self._memory = memory_bytes if memory_bytes is not None else int(0.8 * physical_memory())
        self._gpus = tuple(gpus)
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start workers now, up to one per core; they import their function while the caller plans."""
        while len(self._workers) < min(self._num_workers, os.cpu_count() or 1):
            self._workers.append(self._spawn())

    def _spawn(self) -> _Worker:
        threads = dict.fromkeys(THREAD_VARIABLES, str(self._threads))
        environment = {**MEMORY_VARIABLES, **os.environ, **threads}
        in_use = [worker.gpu for worker in self._workers]
        gpu = min(self._gpus, key=in_use.count, default=None)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            worker = _Worker.start(self._function, environment)
        except OSError as error:
            raise ResourceExhausted(
                f"a worker process could not be started ({error.strerror})",
                remedy="free memory or temporary disk space, or lower --workers",
            ) from error
        worker.gpu = gpu
        worker.started = time.monotonic()
        return worker

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """See :class:`Executor`."""
        self._check_memory(tasks)
        waiting = list(reversed(tasks))
        tries = dict.fromkeys((task.key for task in tasks), 0)
        self._num_workers = min(self._num_workers, len(tasks))
        for surplus in self._workers[self._num_workers :]:
            surplus.end()
        self._workers = self._workers[: self._num_workers]
        with contextlib.closing(self):
            while waiting or any(worker.task for worker in self._workers):
                yield from self._hand_out(waiting, tries)
                for worker in self._ready():
                    yield from self._collect(worker, waiting, tries)
                yield from self._give_up(waiting)

    def _check_memory(self, tasks: Sequence[Task]) -> None:
        largest = max(tasks, key=lambda task: task.estimated_bytes, default=None)
        if largest is not None and largest.estimated_bytes > self._memory:
            raise ResourceExhausted(
                f"this matrix needs about {largest.estimated_bytes / 2**30:.1f} GiB; "
                f"the limit is {self._memory / 2**30:.1f} GiB",
                remedy="raise --memory, or use a machine with more memory",
                tensor=largest.key,
            )

    def _hand_out(self, waiting: list[Task], tries: dict[str, int]) -> Iterator[Event]:
        used = sum(worker.task.estimated_bytes for worker in self._workers if worker.task)
        idle = [worker for worker in self._workers if worker.task is None]
        while waiting and (idle or len(self._workers) < self._num_workers):
            task = waiting[-1]
            if used and used + task.estimated_bytes > self._memory:
                return
            if idle:
                worker = idle.pop()
            else:
                worker = self._spawn()
                self._workers.append(worker)
            waiting.pop()
            tries[task.key] += 1
            used += task.estimated_bytes
            worker.task = task
            self._set_deadline(worker)
            yield Event("started", task.key)
            worker.send(task.payload)

    def _set_deadline(self, worker: _Worker) -> None:
        limited = worker.ready and self._deadline is not None
        worker.deadline = time.monotonic() + (self._deadline or 0.0) if limited else float("inf")

    def _ready(self) -> list[_Worker]:
        """Workers that sent a message or ended, or are past their deadline."""
        busy = [worker for worker in self._workers if worker.task]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            nearest = min((worker.deadline for worker in busy), default=float("inf"))
            timeout = None if nearest == float("inf") else max(0.0, nearest - time.monotonic())
            found = [key.data for key, _ in selector.select(timeout)]
        late = [w for w in busy if w not in found and time.monotonic() >= w.deadline]
        return found + late

    def _collect(self, worker: _Worker, waiting: list[Task], tries: dict[str, int]) -> Iterator[Event]:
        task = worker.task
        assert task is not None
        if time.monotonic() >= worker.deadline and not worker.has_output():
            self._discard(worker)
            self._late_in_a_row += 1
            yield Event("unfinished", task.key, f"not finished within {self._deadline:g} s")
            return
        try:
            kind, value = worker.receive()
        except EOFError:
            reason = self._discard(worker)
            self._check_starts(worker, reason)
            if tries[task.key] < _TRIES:
                waiting.append(task)
                yield Event("retried", task.key, reason)
            else:
                yield Event("failed", task.key, reason)
            return
        if kind == "ready":
            worker.ready = True
            self._start_seconds = time.monotonic() - worker.started
            self._false_starts = 0
            self._set_deadline(worker)
            return
        worker.task = None
        self._late_in_a_row = 0
        if kind == "error":
            raise value
        yield Event("done", task.key, value)

    def _give_up(self, waiting: list[Task]) -> Iterator[Event]:
        """Leave the rest alone where each task would only cost the start of another worker."""
        if (
            self._late_in_a_row < _LATE_IN_A_ROW
            or not waiting
            or (self._deadline or 0.0) >= self._start_seconds
        ):
            return
        reason = f"not tried: {self._late_in_a_row} in a row exceeded the deadline of {self._deadline:g} s"
        while waiting:
            yield Event("unfinished", waiting.pop().key, reason)

    def _check_starts(self, worker: _Worker, reason: str) -> None:
        """No task is to blame, and none would fare better, where workers end before they are ready."""
        self._false_starts += not worker.ready
        if self._false_starts >= _FALSE_STARTS:
            raise ResourceExhausted(
                f"workers do not start: {reason}",
                remedy="raise the memory limit of this shell or container (ulimit -v), or lower --workers",
            )

    def _discard(self, worker: _Worker) -> str:
        """Kill a worker and return how it ended."""
        self._workers.remove(worker)
        return worker.end()

    def close(self) -> None:
        """Kill all workers, idle or not: they hold nothing that is worth waiting for."""
        for worker in self._workers:
            worker.end()
        self._workers = []


def physical_memory() -> int:
    """This machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
