"""The pool without any training: what is run, what is kept, what a failure does to the rest."""

import json
import threading
import time
from dataclasses import replace
from importlib.metadata import version

import pytest
from pretended_runs import digests_of, pretend

from intruscope.errors import IncompleteResult, OutputConflict, ResourceExhausted, UsageError
from intruscope.studies import execute as execute_module
from intruscope.studies import pool
from intruscope.studies.execute import Assignment, execute
from intruscope.studies.folder import study_records
from intruscope.studies.recipes import places
from intruscope.studies.scales import MINI, SMOKE
from reported import stages_of


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    return pretend(monkeypatch)


def keys(*recipes, scale=SMOKE):
    return set(pool.wanted(places(scale, recipes)))


def test_one_pool_serves_all_claims_and_runs_each_thing_once(tmp_path, counted):
    """counts, then rates, then everything: what an earlier study ran, no later one runs."""
    for recipes in (["counts"], ["rates"], None):
        pool.run_study(SMOKE, tmp_path / "study", recipes=recipes)
    everything = set(pool.wanted(places(SMOKE)))
    assert set(counted.asked) == everything
    assert set(counted.asked.values()) == {1}
    assert len(everything) < len(places(SMOKE)) * 0.5
    shared = keys("counts") & keys("rates")
    assert shared


def test_a_report_holds_what_was_asked_for_and_counts_what_is_new(tmp_path):
    events = []
    first = pool.run_study(SMOKE, tmp_path / "study", recipes=["counts"], on_progress=events.append)
    assert stages_of(events) == {"running": "runs"}
    assert events[-1].total == len(first.records)
    assert set(first.records) == keys("counts")
    assert first.num_new == len(keys("counts"))
    second = pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"])
    assert set(second.records) == keys("trajectory")
    assert second.num_new == 0
    assert next(iter(second.records.values()))["settings"]["method"] == "lora"


def test_a_failure_is_told_not_kept_and_tried_again(tmp_path, counted):
    counted.failing = {"pissa"}
    report = pool.run_study(SMOKE, tmp_path / "study", recipes=["methods"])
    assert len(report.failed) == 2  # two seeds
    assert all("pissa" in label and reason == "no luck" for label, reason in report.failed)
    with pytest.raises(IncompleteResult, match="2 runs failed.*pissa.*no luck"):
        pool.check_complete(report)
    counted.failing = set()
    again = pool.run_study(SMOKE, tmp_path / "study", recipes=["methods"])
    pool.check_complete(again)
    assert again.num_new == 2
    assert sorted(counted.asked.values())[-2:] == [2, 2]
    assert sum(count == 2 for count in counted.asked.values()) == 2


def test_seeds_are_runs_of_their_own(tmp_path, counted):
    pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"], seeds=[5])
    pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"], seeds=[5, 6])
    assert len(counted.asked) == 4  # two bases, two seeds
    assert set(counted.asked.values()) == {1}


def test_other_inputs_another_scale_and_a_second_study_are_refused(tmp_path, monkeypatch):
    out = tmp_path / "study"
    pool.run_study(SMOKE, out, recipes=["trajectory"])
    monkeypatch.setattr(pool, "digests", lambda base, inputs: digests_of(base, inputs, text="another"))
    with pytest.raises(OutputConflict, match=r"inputs\.tiny-bert\.text"):
        pool.run_study(SMOKE, out, recipes=["trajectory"])
    with pytest.raises(OutputConflict, match="scale"):
        pool.run_study(MINI, out, recipes=["trajectory"])
    from intruscope.engine.journal import Journal

    plan = json.loads((out / "journal" / "plan.json").read_bytes())
    with Journal(out / "journal", plan), pytest.raises(OutputConflict, match="another run is using"):
        monkeypatch.setattr(pool, "digests", digests_of)
        pool.run_study(SMOKE, out, recipes=["trajectory"])


def test_a_changed_line_of_code_does_not_throw_finished_runs_away(tmp_path, monkeypatch, counted):
    """Each run records its own code instead; another version is refused."""
    pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"])
    monkeypatch.setattr(pool, "code_digest", lambda: "0" * 64)
    assert pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"]).num_new == 0
    monkeypatch.setattr("intruscope.studies.folder.version", lambda name: "99.0")
    with pytest.raises(OutputConflict, match=r"this is intruscope\.study/2 of intruscope 99\.0"):
        pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"])


def test_a_folder_without_a_study_is_told(tmp_path):
    with pytest.raises(UsageError, match="does not hold a study"):
        study_records(tmp_path)


# --- one piece of work -----------------------------------------------------------------------------------


def assignment(tmp_path):
    """As a worker on some machine gets it: the study's folder is there."""
    (tmp_path / "journal").mkdir(exist_ok=True)
    work = places(SMOKE)[0].work
    number = version("intruscope")
    return Assignment(work=work, scale="smoke", out=tmp_path, data=None, inputs={}, version=number)


def test_a_fault_in_one_run_is_its_result_and_a_full_disk_ends_all(tmp_path, monkeypatch):
    def fails(error):
        def done(assignment, folder):
            raise error

        monkeypatch.setattr(execute_module, "_done", done)

    fails(ZeroDivisionError("by zero"))
    assert execute(assignment(tmp_path)) == {"failed": "ZeroDivisionError: by zero"}
    fails(UsageError("got one thing, expected another", remedy="do this"))
    assert "expected another; do this" in execute(assignment(tmp_path))["failed"]
    fails(ResourceExhausted("no room", remedy="free some"))
    with pytest.raises(ResourceExhausted, match="no room"):
        execute(assignment(tmp_path))


def test_a_loss_that_is_no_number_is_a_divergence_with_its_reason(tmp_path, monkeypatch):
    run = places(SMOKE)[0].work

    def train(run, base, inputs, out):
        out.mkdir(parents=True)
        raise IncompleteResult("got a loss that is NaN at step 3, expected numbers", remedy="lower it")

    monkeypatch.setattr(execute_module, "_train", train)
    (tmp_path / "run").mkdir()
    found = execute_module._run(run, SMOKE.bases[0], None, tmp_path / "run")
    assert found["status"] == "diverged"
    assert "NaN at step 3" in found["reason"]
    assert not (tmp_path / "run" / "train").exists()


def test_a_machine_that_does_not_see_the_study_or_is_of_another_version_ends_all(tmp_path):
    """Else its runs would be kept on its own disk, and nobody would know."""
    good = assignment(tmp_path)
    with pytest.raises(UsageError, match="cannot see the folder of the study"):
        execute(replace(good, out=tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="cannot see the folder of the data"):
        execute(replace(good, data=tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"has intruscope .*, and the study runs with 99\.0"):
        execute(replace(good, version="99.0"))
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


def test_what_a_run_took_before_it_was_killed_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(execute_module, "_TICK_SECONDS", 0.01)
    kept = tmp_path / "runs" / assignment(tmp_path).work.key / "spent.json"

    def killed(assignment, folder):
        deadline = time.monotonic() + 20
        while not kept.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyboardInterrupt  # nobody catches it, as nobody does a signal

    monkeypatch.setattr(execute_module, "_done", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(assignment(tmp_path))
    kept.write_text('{"seconds": 100.0, "core_seconds": 50.0}')
    monkeypatch.setattr(execute_module, "_done", lambda assignment, folder: {"status": "ok"})
    found = execute(assignment(tmp_path))
    assert 100.0 <= found["seconds"] < 120.0 and 50.0 <= found["core_seconds"] < 70.0
    assert json.loads(kept.read_text()) == {name: found[name] for name in ("seconds", "core_seconds")}


def test_two_processes_never_work_on_one_run(tmp_path, monkeypatch):
    """One of a machine that was lost may live on for a while: it is waited for."""
    at_work = []

    def done(assignment, folder):
        at_work.append(1)
        time.sleep(0.2)
        assert len(at_work) == 1
        at_work.pop()
        return {"status": "ok"}

    monkeypatch.setattr(execute_module, "_done", done)
    found = []
    threads = [threading.Thread(target=lambda: found.append(execute(assignment(tmp_path)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each["status"] for each in found] == ["ok"] * 3

    folder = tmp_path / "runs" / assignment(tmp_path).work.key
    monkeypatch.setattr(execute_module, "_PATIENCE_SECONDS", 0.0)
    with execute_module._alone_in(folder):
        assert "another process is still using this folder" in execute(assignment(tmp_path))["failed"]


def test_runs_go_to_the_cluster_that_is_named(tmp_path, monkeypatch):
    from pretended_runs import Counting

    asked = []

    def executor(function, *, address, num_tasks, threads_per_task):
        asked.append((address, num_tasks, threads_per_task))
        return Counting(function, num_workers=1, threads_per_worker=1)

    monkeypatch.setattr(pool, "require_ray", lambda: None)
    monkeypatch.setattr(pool, "RayExecutor", executor)
    for jobs in (None, 3):
        found = pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"], ray="head:6379", jobs=jobs)
        assert len(found.records) == 4
    assert asked == [("head:6379", None, 1), ("head:6379", 3, 1)]


def test_without_ray_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="package ray is not installed"):
        pool.run_study(SMOKE, tmp_path / "study", recipes=["trajectory"], ray="auto")
    assert not (tmp_path / "study").exists()
