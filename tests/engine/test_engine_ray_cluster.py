"""The executor on a real cluster of two nodes: the same results, a lost node, and nothing left behind."""

import os
import time
from pathlib import Path

import pytest

from intruscope.engine.executors import LocalExecutor
from intruscope.engine.ray_executor import RayExecutor
from intruscope.engine.run import run_tasks
from intruscope.engine.tasks import Task
from intruscope.errors import MalformedInput, UsageError
from processes import alive
from ray_cluster import two_nodes

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
FUNCTION = "engine_functions:work"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    with two_nodes(log, PYTHONPATH=str(Path(__file__).parent)) as found:
        yield found


def tasks_of(payloads):
    return [Task(key=f"t{number}", payload=payload) for number, payload in enumerate(payloads)]


def wait_until(holds, seconds=120):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_results_and_threads_are_those_of_local_processes(cluster):
    tasks = tasks_of([("square", number) for number in range(6)])
    there = run_tasks(tasks, RayExecutor(FUNCTION, address=cluster.address))
    here = run_tasks(tasks, LocalExecutor(FUNCTION, num_workers=2))
    assert there == here
    assert there[3].record == {"value": 9, "half": 1.5, "threads": "1"}
    assert not ray.is_initialized()


def test_an_error_comes_back_as_what_it_was(cluster):
    with pytest.raises(MalformedInput, match="got rubbish"):
        run_tasks(tasks_of([("malformed", None)]), RayExecutor(FUNCTION, address=cluster.address))


def test_a_process_that_dies_is_tried_again_and_one_that_always_dies_fails_alone(cluster, tmp_path):
    events = []
    tasks = tasks_of([("die-once", str(tmp_path / "marker")), ("die", None), ("square", 2)])
    executor = RayExecutor(FUNCTION, address=cluster.address)
    found = run_tasks(tasks, executor, on_event=lambda event: events.append((event.event, event.key)))
    assert [outcome.status for outcome in found] == ["done", "failed", "done"]
    assert events.count(("retried", "t0")) == 1
    assert events.count(("retried", "t1")) == 2
    assert found[1].reason


def test_no_cluster_there_is_one_message():
    with pytest.raises(UsageError, match=r"no Ray cluster is running at 127\.0\.0\.1:9"):
        RayExecutor(FUNCTION, address="127.0.0.1:9").start()


def test_closing_leaves_nothing_running(cluster, tmp_path):
    executor = RayExecutor(FUNCTION, address=cluster.address)
    events = executor.run(tasks_of([("mark", (str(tmp_path), 600))] * 2))
    assert [next(events).kind for _ in range(2)] == ["started"] * 2
    wait_until(lambda: len(os.listdir(tmp_path)) == 2)
    pids = os.listdir(tmp_path)
    assert all(alive(pid) for pid in pids)
    events.close()
    wait_until(lambda: not any(alive(pid) for pid in pids), 30)


def test_what_a_lost_node_ran_is_run_by_the_other(cluster, tmp_path):
    """Last in this file: the cluster has one node less from here on."""
    events = []
    executor = RayExecutor(FUNCTION, address=cluster.address)

    def watch(event):
        events.append(event.event)
        if events.count("started") == 2 and "lost" not in events:
            wait_until(lambda: len(os.listdir(tmp_path)) == 2)
            cluster.lose_a_node()
            events.append("lost")

    found = run_tasks(tasks_of([("mark", (str(tmp_path), 10))] * 2), executor, on_event=watch)
    assert [outcome.record for outcome in found] == [{"slept": 10}] * 2
    assert events.count("retried") == 1
    assert len(os.listdir(tmp_path)) >= 2
