"""Executors: one table of behaviours over both, then what only processes can do."""

import os
import time

import pytest

from intruscope.engine.executors import Event, Executor, InlineExecutor, LocalExecutor
from intruscope.engine.run import run_tasks
from intruscope.engine.tasks import Task
from intruscope.errors import MalformedInput, ResourceExhausted, UsageError

FUNCTION = "engine_functions:work"


@pytest.fixture(params=["inline", "local"])
def executor(request, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if request.param == "inline":
        return InlineExecutor(FUNCTION)
    return LocalExecutor(FUNCTION, num_workers=2)


def squares(count):
    return [Task(key=f"t{i}", payload=("square", i), weight=i + 1.0) for i in range(count)]


def test_results_come_in_the_order_of_the_tasks(executor):
    outcomes = run_tasks(squares(12), executor)
    assert [o.key for o in outcomes] == [f"t{i}" for i in range(12)]
    assert [o.record["value"] for o in outcomes] == [i * i for i in range(12)]
    assert {o.status for o in outcomes} == {"done"}


def test_progress_adds_up(executor):
    seen = []
    run_tasks(squares(5), executor, on_event=seen.append)
    assert seen[0].event == "resumed"
    assert seen[0].num_done == 0
    done = [event for event in seen if event.event == "done"]
    assert [event.num_done for event in done] == [1, 2, 3, 4, 5]
    assert done[-1].weight_done == done[-1].weight_total == 15.0


def test_an_error_of_ours_arrives_as_itself(executor):
    with pytest.raises(MalformedInput) as caught:
        run_tasks([Task(key="a", payload=("malformed", None))], executor)
    assert (caught.value.fact, caught.value.file, caught.value.tensor) == (
        "got rubbish, expected sense",
        "a",
        "b",
    )


def test_memory_that_runs_out_is_said_with_the_flag_to_change():
    figures = {
        "no-memory": r"already held 0\.[01]\d GiB",
        "no-memory-in-torch": r"could not allocate 120\.00 GiB",
    }
    for how, figure in figures.items():
        with pytest.raises(ResourceExhausted, match=rf"out of memory: .*{figure}.*--workers"):
            run_tasks([Task(key="a", payload=(how, None))], LocalExecutor(FUNCTION, num_workers=1))


def test_a_megabyte_comes_back_whole(executor):
    (outcome,) = run_tasks([Task(key="a", payload=("big", 1_000_000))], executor)
    assert outcome.record == {"text": "x" * 1_000_000}


def test_no_tasks_is_no_work(executor):
    assert run_tasks([], executor) == []


def test_threads_are_fixed_in_the_workers():
    (outcome,) = run_tasks(squares(1), LocalExecutor(FUNCTION, num_workers=1, threads_per_worker=3))
    assert outcome.record["threads"] == "3"


def test_an_unpicklable_error_still_tells_its_name():
    with pytest.raises(RuntimeError, match="Local: from nowhere"):
        run_tasks([Task(key="a", payload=("unpicklable", None))], LocalExecutor(FUNCTION, num_workers=1))


def test_a_killed_worker_costs_one_retry(tmp_path):
    events = []
    task = Task(key="a", payload=("die-once", str(tmp_path / "marker")))
    (outcome,) = run_tasks([task], LocalExecutor(FUNCTION, num_workers=1), on_event=events.append)
    assert outcome.record == {"second": True}
    assert [event.event for event in events] == ["resumed", "started", "retried", "started", "done"]


@pytest.mark.parametrize(("how", "reason"), [("killed", "SIGKILL"), ("die", "exit code 3")])
def test_a_worker_that_always_dies_fails_only_its_task(how, reason):
    tasks = [*squares(3), Task(key="bad", payload=(how, None)), *[Task(key="z", payload=("square", 9))]]
    outcomes = run_tasks(tasks, LocalExecutor(FUNCTION, num_workers=2))
    assert [o.status for o in outcomes] == ["done"] * 3 + ["failed", "done"]
    assert reason in outcomes[3].reason


def test_a_deadline_leaves_its_task_unfinished_and_no_other():
    tasks = [*squares(3), Task(key="slow", payload=("sleep", 60)), Task(key="z", payload=("square", 7))]
    started = time.monotonic()
    outcomes = run_tasks(tasks, LocalExecutor(FUNCTION, num_workers=2, deadline_seconds=1.0))
    assert time.monotonic() - started < 20
    assert [o.status for o in outcomes] == ["done"] * 3 + ["unfinished", "done"]
    assert "1 s" in outcomes[3].reason
    assert outcomes[4].record["value"] == 49


def test_the_start_of_a_worker_is_not_part_of_a_deadline(monkeypatch):
    monkeypatch.setenv("SLOW_IMPORT", "1.5")
    executor = LocalExecutor(FUNCTION, num_workers=1, deadline_seconds=0.75)
    outcomes = run_tasks([*squares(2), Task(key="slow", payload=("sleep", 60))], executor)
    assert [o.status for o in outcomes] == ["done", "done", "unfinished"]


def test_a_deadline_shorter_than_a_start_is_not_paid_for_every_task():
    """Each late task costs the start of another worker."""
    tasks = [Task(key=str(i), payload=("sleep", 60)) for i in range(1000)]
    started = time.monotonic()
    outcomes = run_tasks(tasks, LocalExecutor(FUNCTION, num_workers=2, deadline_seconds=0.0001))
    assert time.monotonic() - started < 30
    assert {outcome.status for outcome in outcomes} == {"unfinished"}
    assert outcomes[0].reason == "not finished within 0.0001 s"
    assert outcomes[-1].reason in {
        f"not tried: {n} in a row exceeded the deadline of 0.0001 s" for n in (8, 9)
    }


def test_workers_that_never_become_ready_end_the_run(monkeypatch):
    """None of the tasks is to blame, and all would fare the same."""
    monkeypatch.setenv("NO_IMPORT", "1")
    tasks = squares(1000)
    with pytest.raises(ResourceExhausted, match=r"do not start.*no room for this module.*ulimit -v"):
        run_tasks(tasks, LocalExecutor(FUNCTION, num_workers=2))


def test_no_more_workers_start_at_once_than_there_are_cores():
    executor = LocalExecutor(FUNCTION, num_workers=100_000)
    executor.start()
    assert len(executor._workers) <= os.cpu_count()
    assert [o.record["value"] for o in run_tasks(squares(3), executor)] == [0, 1, 4]


def test_a_hundred_thousand_threads_are_refused():
    with pytest.raises(UsageError, match=r"100,000 threads .* lower --threads"):
        LocalExecutor(FUNCTION, num_workers=1, threads_per_worker=100_000)


class AtOnce(Executor):
    """Does each task in no time, so that only the bookkeeping counts."""

    def start(self):
        pass

    def run(self, tasks):
        for task in tasks:
            yield Event("started", task.key)
            yield Event("done", task.key, {})

    def close(self):
        pass


def test_the_bookkeeping_of_many_tasks_is_linear():
    """Thirty thousand took three minutes when each event added up all that was done; now a second."""
    events = []
    tasks = [Task(key=str(i), payload=None, weight=2.0) for i in range(30_000)]
    started = time.process_time()
    run_tasks(tasks, AtOnce(), on_event=events.append)
    assert time.process_time() - started < 20
    assert events[-1].weight_done == events[-1].weight_total == 60_000.0
    assert [event.weight_done for event in events[:5]] == [0.0, 0.0, 2.0, 2.0, 4.0]


def test_memory_is_refused_with_the_figure_and_the_flag():
    task = Task(key="huge", payload=("square", 1), estimated_bytes=3 << 30)
    with pytest.raises(ResourceExhausted, match=r"3\.0 GiB.*limit is 1\.0 GiB.*--memory"):
        run_tasks([task], LocalExecutor(FUNCTION, num_workers=2, memory_bytes=1 << 30))


def test_memory_keeps_tasks_apart_that_do_not_fit_together():
    tasks = [Task(key=str(i), payload=("sleep", 0.2), estimated_bytes=600) for i in range(3)]
    running, most = set(), 0

    def watch(event):
        nonlocal most
        if event.event == "started":
            running.add(event.key)
        if event.event == "done":
            running.discard(event.key)
        most = max(most, len(running))

    outcomes = run_tasks(tasks, LocalExecutor(FUNCTION, num_workers=3, memory_bytes=1000), on_event=watch)
    assert most == 1
    assert all(outcome.status == "done" for outcome in outcomes)


def test_a_worker_that_cannot_start_is_a_matter_of_resources(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.raises(ResourceExhausted, match=r"could not be started \(Resource temp.*--workers"):
        run_tasks(squares(1), LocalExecutor(FUNCTION, num_workers=1))


def test_nothing_is_left_running_after_an_error():
    executor = LocalExecutor(FUNCTION, num_workers=2)
    executor.start()
    pids = [worker.process.pid for worker in executor._workers]
    with pytest.raises(MalformedInput):
        run_tasks([Task(key="a", payload=("malformed", None))], executor)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def gpus_of(executor, tasks):
    """The GPU that each worker process saw."""
    found = [outcome.record for outcome in run_tasks(tasks, executor)]
    return sorted(str(gpu) for gpu in {r["process"]: r["gpu"] for r in found if "gpu" in r}.values())


def test_workers_are_spread_over_the_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    # None is done before the last has begun, so that each has its own worker.
    tasks = [Task(key=f"t{i}", payload=("gpu", 1.0)) for i in range(5)]
    assert gpus_of(LocalExecutor(FUNCTION, num_workers=5, gpus=("3", "5")), tasks) == [
        "3",
        "3",
        "3",
        "5",
        "5",
    ]
    assert gpus_of(LocalExecutor(FUNCTION, num_workers=2), tasks[:2]) == ["3,5", "3,5"]
    # The worker in place of one that was killed has its GPU.
    again = [Task(key="dies", payload=("die-once", str(tmp_path / "marker"))), *tasks]
    found = gpus_of(LocalExecutor(FUNCTION, num_workers=2, gpus=("3", "5")), again)
    assert set(found) == {"3", "5"}
