"""The executor for several machines, against a stand-in for Ray that loses processes on demand.

What Ray itself does is in test_engine_ray_cluster.py, where Ray is installed.
"""

import socket
import sys
import types
from concurrent.futures import Future
from importlib import util

import engine_functions
import pytest

from intruscope.engine import ray_executor
from intruscope.engine.ray_executor import RayExecutor
from intruscope.engine.run import run_tasks
from intruscope.engine.tasks import Task
from intruscope.errors import MalformedInput, UsageError


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__("a long story. With advice.")
        self.cause = cause


class NodeDiedError(RayError):
    pass


class RuntimeEnvSetupError(RayError):
    pass


class Reference:
    def __init__(self, future):
        self._future = future

    def future(self):
        return self._future


class StandIn(types.ModuleType):
    """As much of Ray as the executor uses; tasks run when they are submitted."""

    def __init__(self):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, RuntimeEnvSetupError=RuntimeEnvSetupError
        )
        self.calls, self.options, self.cancelled, self.losses = [], {}, [], {}
        self.processors, self.refusal, self.initialized, self.hang = 2.0, None, False, False
        self.most = 0

    def init(self, address, **options):
        self.calls.append(("init", address))
        if self.refusal is not None:
            raise self.refusal
        self.initialized = True

    def is_initialized(self):
        return self.initialized

    def cluster_resources(self):
        return {"CPU": self.processors} if self.processors else {}

    def shutdown(self):
        self.calls.append(("shutdown",))
        self.initialized = False

    def cancel(self, reference, force):
        self.cancelled.append(reference)

    def remote(self, **options):
        self.options = options
        return lambda function: types.SimpleNamespace(remote=lambda *given: self._submit(function, *given))

    def _submit(self, function, path, payload):
        future = Future()
        lost = self.losses.get(payload, [])
        if self.hang:
            pass
        elif lost:
            future.set_exception(lost.pop())
        else:
            future.set_result(function(path, payload))
        return Reference(future)


@pytest.fixture
def ray(monkeypatch):
    found = StandIn()
    monkeypatch.setitem(sys.modules, "ray", found)
    monkeypatch.setattr(ray_executor, "require_ray", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


@pytest.fixture(scope="module")
def head():
    """Something that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def run(ray, payloads, **options):
    events = []
    tasks = [Task(key=f"t{n}", payload=payload) for n, payload in enumerate(payloads)]
    executor = RayExecutor("engine_functions:work", **options)
    outcomes = run_tasks(tasks, executor, on_event=lambda e: events.append((e.event, e.key)))
    return outcomes, events


SQUARE = ("square", 3)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_address_threads_and_results(ray, head):
    outcomes, _ = run(ray, [SQUARE, ("square", 5)], address=head, threads_per_task=2)
    assert [o.record["value"] for o in outcomes] == [9, 25]
    assert ray.calls == [("init", head), ("shutdown",)]
    assert ray.options["num_cpus"] == 2
    assert ray.options["max_retries"] == 0
    variables = ray.options["runtime_env"]["env_vars"]
    assert {variables[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"2"}


def test_a_lost_machines_task_is_tried_again_and_told(ray):
    ray.losses[SQUARE] = [NodeDiedError("The node is dead. See the manual."), NodeDiedError("gone")]
    outcomes, events = run(ray, [SQUARE])
    assert outcomes[0].record["value"] == 9
    assert [kind for kind, _ in events] == ["resumed", "started", "retried", "started", "retried", "started",
                                            "done"]  # fmt: skip


def test_what_is_lost_three_times_fails_with_the_reason_and_the_rest_goes_on(ray):
    ray.losses[SQUARE] = [NodeDiedError("The node is dead. See the manual.") for _ in range(3)]
    outcomes, _ = run(ray, [SQUARE, ("square", 5)])
    assert (outcomes[0].status, outcomes[0].reason) == ("failed", "The node is dead")
    assert outcomes[1].record["value"] == 25


def test_what_the_function_raises_is_raised_here_and_the_cluster_is_left(ray):
    with pytest.raises(MalformedInput, match="got rubbish"):
        run(ray, [("malformed", None)])
    assert ray.calls[-1] == ("shutdown",)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RayTaskError(ModuleNotFoundError("No module named 'intruscope'")),
            "could not take a task .No module",
        ),
        (RuntimeEnvSetupError("no room. Help."), "could not start a task .no room"),
    ],
)
def test_a_machine_that_cannot_work_ends_all_with_one_message(ray, error, told):
    ray.losses[SQUARE] = [error]
    with pytest.raises(UsageError, match=told):
        run(ray, [SQUARE])


def test_no_more_at_once_than_asked(ray, monkeypatch):
    executor = RayExecutor("engine_functions:work", num_tasks=2)
    seen = []
    for event in executor.run([Task(key=f"t{n}", payload=("square", n)) for n in range(5)]):
        seen.append(len(executor._running))
        assert event.kind in {"started", "done"}
    assert max(seen) == 2


def test_closing_cancels_what_runs(ray):
    ray.hang = True
    executor = RayExecutor("engine_functions:work")
    events = executor.run([Task(key="a", payload=SQUARE), Task(key="b", payload=SQUARE)])
    assert [next(events).key, next(events).key] == ["a", "b"]
    events.close()
    assert len(ray.cancelled) == 2
    assert ray.calls[-1] == ("shutdown",)


def test_a_connection_of_the_caller_is_used_and_left_open(ray):
    ray.initialized = True
    run(ray, [SQUARE])
    assert ray.calls == []
    assert ray.initialized


@pytest.mark.parametrize(
    ("refusal", "address", "told"),
    [
        (ConnectionError("Could not find any running Ray instance. Please specify"), "auto",
         "no Ray cluster is running at auto .Could not find any running Ray instance.; start one"),
        (RuntimeError("Version mismatch: 2.1\nthere"), "HEAD", "Version mismatch: 2.1 there"),
        (None, "ray://head:10001", "ray://head:10001 is not the address of"),
        (None, "head", "head is not the address of a cluster's head: auto or HOST:PORT"),
        (None, "127.0.0.1:9", r"Ray cluster is running at 127\.0\.0\.1:9 ..Errno 111. Connection refused."),
        (None, "127.0.0.1:99999", "no Ray cluster is running at"),
    ],
)  # fmt: skip
def test_no_cluster_is_one_message(ray, head, refusal, address, told):
    ray.refusal = refusal
    address = address.replace("HEAD", head)
    with pytest.raises(UsageError, match=told) as error:
        run(ray, [SQUARE], address=address)
    assert "\n" not in str(error.value)


def test_auto_is_the_cluster_of_the_environment(ray, head, monkeypatch):
    run(ray, [SQUARE])
    monkeypatch.setenv("RAY_ADDRESS", head)
    run(ray, [SQUARE])
    assert [call[1] for call in ray.calls if call[0] == "init"] == ["auto", head]


def test_a_cluster_without_processors_would_wait_for_ever(ray):
    ray.processors = 0
    with pytest.raises(UsageError, match="has 0 processors; each task needs 1"):
        run(ray, [SQUARE])
    assert ray.calls[-1] == ("shutdown",)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    executor = RayExecutor(f"{engine_functions.__name__}:work")
    with pytest.raises(UsageError, match=r"package ray is not installed.*intruscope\[lab,ray\]"):
        executor.start()
    executor.close()
