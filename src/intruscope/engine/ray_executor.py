"""Where tasks run on several machines: as tasks of a running Ray cluster.

Every machine of the cluster has the same Intruscope installed, and reads and writes the same files under the
same paths. A task that loses its machine or process is retried elsewhere. Ray is an extra of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

from intruscope.engine.executors import MEMORY_VARIABLES, THREAD_VARIABLES, Event, Executor
from intruscope.engine.worker import answer
from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.engine.tasks import Task

AUTO = "auto"
"""The cluster of ``RAY_ADDRESS``, or the one that this machine is part of."""
_TRIES = 3
_CLIENT = "ray://"
_PATIENCE_SECONDS = 20.0


def require_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        UsageError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise UsageError(
            "the package ray is not installed; runs on several machines need it",
            remedy="install the extra: pip install 'intruscope[lab,ray]', on every machine of the cluster",
        )


class RayExecutor(Executor):
    """Runs tasks on the machines of a Ray cluster.

    Args:
        function: ``package.module:name`` of a function of one picklable argument.
        address: ``auto``, or ``HOST:PORT`` of the cluster's head.
        num_tasks: Maximum number of tasks at once; None for one per processor of the cluster.
        threads_per_task: Threads of the numerical libraries, and processors that Ray reserves for each task.
    """

    def __init__(
        self, function: str, *, address: str = AUTO, num_tasks: int | None = None, threads_per_task: int = 1
    ) -> None:
        self._function = function
        self._address = address
        self._num_tasks = num_tasks
        self._threads = threads_per_task
        self._running: dict[Future[Any], tuple[Task, Any]] = {}
        self._is_connected = False

    def start(self) -> None:
        """Connect to the cluster.

        Raises:
            UsageError: Ray is not installed, or there is no such cluster, or one without a processor.
        """
        if self._is_connected:
            return
        require_ray()
        import ray

        if not ray.is_initialized():  # else the caller's own connection is used, and left open
            address = os.environ.get("RAY_ADDRESS", AUTO) if self._address == AUTO else self._address
            if address != AUTO:
                _check_answers(address)
            with _signals_kept():
                self._connect(ray, address)
        num_processors = ray.cluster_resources().get("CPU", 0)
        if num_processors < self._threads:
            self.close()
            raise UsageError(
                f"the Ray cluster has {num_processors:g} processors; each task needs {self._threads}",
                remedy="add a machine to it: ray start --address=HOST:PORT",
            )

    def _connect(self, ray: Any, address: str) -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            raise _no_cluster(address, error) from None
        self._is_connected = True

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """See :class:`Executor`."""
        import ray

        self.start()
        threads = dict.fromkeys(THREAD_VARIABLES, str(self._threads))
        remote = ray.remote(
            num_cpus=self._threads,
            max_retries=0,  # retried here, where it is reported
            runtime_env={"env_vars": {**MEMORY_VARIABLES, **threads}},
        )(_call)
        waiting = list(reversed(tasks))
        tries = dict.fromkeys((task.key for task in tasks), 0)
        with contextlib.closing(self):
            while waiting or self._running:
                while waiting and (self._num_tasks is None or len(self._running) < self._num_tasks):
                    task = waiting.pop()
                    tries[task.key] += 1
                    reference = remote.remote(self._function, task.payload)
                    self._running[reference.future()] = task, reference
                    yield Event("started", task.key)
                # Not ray.wait: it holds a signal's own exception back until a task ends, as a SystemError.
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    yield self._collect(ray, future, waiting, tries)

    def _collect(self, ray: Any, future: Future[Any], waiting: list[Task], tries: dict[str, int]) -> Event:
        task, _ = self._running.pop(future)
        try:
            kind, value = future.result()
        except ray.exceptions.RayTaskError as error:  # the function is not there, or not the same
            raise UsageError(
                f"a machine of the cluster could not take a task ({_reason(error.cause)})",
                remedy="install the same Intruscope on every machine of the cluster",
            ) from error
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise UsageError(
                f"a machine of the cluster could not start a task ({_reason(error)})",
                remedy="see Ray's own logs on that machine",
            ) from error
        except ray.exceptions.RayError as error:  # its process or its machine is gone
            if tries[task.key] < _TRIES:
                waiting.append(task)
                return Event("retried", task.key, _reason(error))
            return Event("failed", task.key, _reason(error))
        if kind == "error":
            raise value
        return Event("done", task.key, value)

    def close(self) -> None:
        """Cancel running tasks, and leave the cluster as it was."""
        if not (self._running or self._is_connected):
            return
        import ray

        for _, reference in self._running.values():
            with contextlib.suppress(Exception):  # also where the cluster is gone
                ray.cancel(reference, force=True)
        self._running = {}
        if self._is_connected:
            self._is_connected = False
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if address.startswith(_CLIENT) or not host or not port.isdecimal():
        raise UsageError(
            f"{printable(address)} is not the address of a cluster's head: {AUTO} or HOST:PORT",
            remedy="run this on a machine of the cluster, or as one of its jobs (ray job submit)",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster is running at {printable(address)} ({_reason(error)})",
        remedy="start one (ray start --head, and ray start --address=HOST:PORT on each other machine), or "
        "give this machine the cluster's version of Ray and its token",
    )


def _call(function: str, payload: Any) -> tuple[str, Any]:
    """What runs on a machine of the cluster."""
    module, _, name = function.partition(":")
    return answer(getattr(importlib.import_module(module), name), payload)


def _reason(error: BaseException) -> str:
    """The first sentence of one of Ray's errors: the rest is advice about Ray's own tools."""
    text = " ".join(str(error).split())
    return printable(text.partition(". ")[0].rstrip(".") or type(error).__name__)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the caller's handlers: Ray installs its own for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
