"""The journal: what is on disk counts, what is damaged is done again, and nobody shares."""

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intruscope.engine.journal import (
    Journal,
    cache_folder,
    cached_runs,
    default_folder,
    plan_hash,
    prune_cache,
    read_records,
)
from intruscope.errors import OutputConflict, ResourceExhausted
from processes import alive, children

PARENT = Path(__file__).with_name("engine_parent.py")
RECORDS = {f"k{i}": {"value": i, "third": i / 3} for i in range(5)}


def start(folder, count, seconds=0.0):
    return subprocess.Popen(
        [sys.executable, str(PARENT), str(folder), str(count), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, count):
    process = start(folder, count)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    return [line for line in lines if not line.startswith("RESULT")], lines[-1]


@pytest.fixture
def journal(tmp_path):
    folder = tmp_path / "journal"
    with Journal(folder, {"a": 1}) as opened:
        for key, record in RECORDS.items():
            opened.append(key, record)
    return folder


def reopened(folder):
    with Journal(folder, {"a": 1}) as opened:
        return dict(opened.records), opened.num_damaged


def test_records_survive(journal):
    assert reopened(journal) == (RECORDS, 0)


def test_a_tail_cut_at_any_byte_loses_only_the_last_record(journal):
    path = journal / "records.jsonl"
    whole = path.read_bytes()
    last = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
    for cut in range(len(last), len(whole) - 1):
        path.write_bytes(whole[:cut])
        records, _ = reopened(journal)
        assert list(records) == ["k0", "k1", "k2", "k3"], cut
    with Journal(journal, {"a": 1}) as opened:
        opened.append("k4", RECORDS["k4"])
    assert reopened(journal)[0] == RECORDS


def test_any_flipped_bit_costs_one_record_and_is_said(journal):
    path = journal / "records.jsonl"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(damaged))
        records, num_damaged = reopened(journal)
        assert all(RECORDS[key] == record for key, record in records.items())
        assert len(records) >= 3
        assert len(records) == 5 or num_damaged >= 1


def test_the_journal_of_another_command_is_refused_in_words(tmp_path):
    with Journal(tmp_path / "j", {"settings": {"k": 10}}):
        pass
    with pytest.raises(OutputConflict, match="the journal is of another command; choose another folder"):
        Journal(tmp_path / "j", {"settings": {"k": 5}, "purpose": "survey"})


def test_another_plan_is_refused_with_what_differs(tmp_path):
    folder = tmp_path / "j"
    before = {"version": "1", "settings": {"k": 10, "seed": 0}, "inputs": [{"path": "a"}, {"path": "b"}]}
    after = {"version": "1", "settings": {"k": 5, "seed": 0}, "inputs": [{"path": "a"}, {"path": "c" * 99}]}
    with Journal(folder, before) as opened:
        opened.append("k0", RECORDS["k0"])
    with pytest.raises(OutputConflict) as caught:
        Journal(folder, after)
    assert "differs in inputs.1.path, settings.k (10 there, 5 now);" in str(caught.value)
    assert "--fresh" in caught.value.remedy
    with Journal(folder, before) as opened:
        assert opened.records == {"k0": RECORDS["k0"]}, "a refusal changes nothing"
    with Journal(folder, after, fresh=True) as opened:
        assert opened.records == {}


def test_a_fresh_start_spares_a_journal_in_use(journal):
    with Journal(journal, {"a": 1}), pytest.raises(OutputConflict, match="another run"):
        Journal(journal, {"a": 1}, fresh=True)
    assert reopened(journal) == (RECORDS, 0)


def test_a_second_run_is_kept_out_and_a_dead_one_is_not(tmp_path):
    folder = tmp_path / "j"
    with Journal(folder, {}), pytest.raises(OutputConflict, match="another run"):
        Journal(folder, {})
    (folder / "lock").write_text("left by a run that was killed")
    Journal(folder, {}).close()


def test_foreign_files_are_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputConflict, match="thesis.tex"):
        Journal(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(OutputConflict, match="is a file"):
        Journal(path, {})


def test_a_full_disk_keeps_earlier_records(journal):
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from intruscope.engine.journal import Journal\n"
        "from intruscope.errors import IntruscopeError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "j = Journal(Path(sys.argv[1]), {'a': 1})\n"
        "size = (Path(sys.argv[1]) / 'records.jsonl').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, size + 10))\n"
        "try:\n    j.append('k9', {'value': 'x' * 100})\n"
        "except IntruscopeError as e:\n    print(e); sys.exit(e.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(journal)], capture_output=True, text=True, check=False
    )
    assert done.returncode == ResourceExhausted.exit_code, done.stderr
    assert "intact" in done.stdout
    assert reopened(journal)[0] == RECORDS
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_the_default_folder_follows_the_plan(monkeypatch, tmp_path):
    monkeypatch.delenv("INTRUSCOPE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = plan_hash({"a": 1, "b": 2}), plan_hash({"b": 2, "a": 1})
    assert first == second != plan_hash({"a": 1, "b": 3})
    assert default_folder(first).is_relative_to(tmp_path / "intruscope")
    monkeypatch.setenv("INTRUSCOPE_CACHE", str(tmp_path / "own"))
    assert default_folder(first).is_relative_to(tmp_path / "own")


def test_killed_and_resumed_is_the_same(tmp_path):
    count, generator = 12, random.Random(0)
    computed, expected = finish(tmp_path / "whole", count)
    assert len(computed) == count
    for trial in range(6):  # the command's own test does it twenty times
        folder = tmp_path / f"run{trial}"
        process = start(folder, count, 0.01)
        time.sleep(generator.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
        before = [line for line in out.splitlines() if line.startswith("t")]
        again, result = finish(folder, count)
        assert result == expected
        assert set(again).isdisjoint(before)
        assert len(again) <= count - len(before)


def test_an_interrupt_leaves_quickly_and_leaves_nothing(tmp_path):
    process = start(tmp_path / "j", 2000, 0.0)
    assert process.stdout is not None
    process.stdout.readline()
    workers = children(process.pid)
    assert workers
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert time.monotonic() - started < 5
    assert process.returncode == 130
    deadline = time.monotonic() + 2
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in workers if alive(pid)]


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    process = start(tmp_path / "j", 2000, 0.0)
    assert process.stdout is not None
    process.stdout.readline()
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 3
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers
    assert not [pid for pid in workers if alive(pid)]


def test_records_are_plain_lines_that_a_person_can_read(journal):
    line = (journal / "records.jsonl").read_text().splitlines()[0]
    digest, _, body = line.partition(" ")
    assert len(digest) == 32
    assert json.loads(body) == ["k0", RECORDS["k0"]]
    assert os.path.getsize(journal / "plan.json") > 0


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Journals in the user's cache: a new one, an old one, an old one in use; and what is no journal."""
    monkeypatch.setenv("INTRUSCOPE_CACHE", str(tmp_path))
    folders = {}
    for name, days in (("new", 0), ("old", 40), ("busy", 50)):
        inputs = [{"path": f"/models/{side}/model.safetensors"} for side in ("base", name)]
        plan = {"inputs": inputs, "name": name}
        folder = folders[name] = default_folder(plan_hash(plan))
        with Journal(folder, plan) as opened:
            opened.append("t", {"value": 1})
        past = time.time() - days * 86400
        for path in folder.iterdir():
            os.utime(path, (past, past))
    strange = folders["strange"] = cache_folder() / "thesis"
    strange.mkdir()
    for name in ("lock", "thesis.tex"):
        (strange / name).touch()
        os.utime(strange / name, (0, 0))
    return folders


def test_the_cache_lists_what_each_run_takes(cache):
    new, old, busy = cached_runs()
    assert [run.folder for run in (new, old, busy)] == [cache[name] for name in ("new", "old", "busy")]
    assert old.num_bytes == sum(path.stat().st_size for path in cache["old"].iterdir()) > 0
    assert old.idle_seconds == pytest.approx(40 * 86400, abs=60)
    assert old.models == ("/models/base", "/models/old")


def test_pruning_removes_old_journals_and_nothing_else(cache):
    busy = os.open(cache["busy"] / "lock", os.O_RDWR)
    fcntl.flock(busy, fcntl.LOCK_EX)
    try:
        assert [run.folder for run in prune_cache(days=30)] == [cache["old"]]
    finally:
        os.close(busy)
    assert set(cache_folder().iterdir()) == {cache[name] for name in ("new", "busy", "strange")}
    assert read_records(cache["new"]) == {"t": {"value": 1}}


def test_a_run_that_resumes_is_not_old(cache):
    plan = json.loads((cache["old"] / "plan.json").read_bytes())
    with Journal(cache["old"], plan) as opened:
        assert opened.records
    assert [run.folder for run in prune_cache(days=30)] == [cache["busy"]]


def test_no_cache_is_an_empty_one(monkeypatch, tmp_path):
    monkeypatch.setenv("INTRUSCOPE_CACHE", str(tmp_path / "none"))
    assert cached_runs() == prune_cache(days=0) == []
