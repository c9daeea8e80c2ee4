"""A study on a real cluster of two nodes: Ctrl-C, kill -9, a lost node, and the figures of one machine."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ray_cluster import two_nodes

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("ray") / "log.txt") as found:
        yield found


def start(out, *options):
    command = [
        sys.executable,
        "-m",
        "intruscope",
        "study",
        "run",
        "C5",
        "--scale",
        "smoke",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finished(out):
    path = out / "journal" / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def figures(out):
    """Every record without what times and code say."""
    lines = (out / "journal" / "records.jsonl").read_text().splitlines()
    found = dict(json.loads(line.partition(" ")[2]) for line in lines)
    assert len(found) == len(lines)  # nothing was kept twice
    return {
        key: {name: value for name, value in record.items() if "seconds" not in name and name != "origin"}
        for key, record in found.items()
    }


def wait_until(holds, process=None, seconds=900):
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def held(out):
    """How many runs' folders a process is in."""
    number = 0
    for path in (out / "runs").glob("*/lock"):
        with path.open("wb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number += 1
    return number


def test_interrupted_killed_and_with_a_node_less_it_ends_with_the_figures_of_one_machine(cluster, tmp_path):
    out, options = tmp_path / "spread", ("--ray", cluster.address)
    process = start(out, *options)
    wait_until(lambda: held(out) == 2, process)  # one on each node
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "interrupted; run the same command again" in told
    wait_until(lambda: held(out) == 0, seconds=60)

    process = start(out, *options)
    wait_until(lambda: finished(out) >= 1 and held(out), process)
    process.kill()
    process.communicate()
    kept = finished(out)
    process = start(out, *options)  # at once: it waits for whatever is still in a run's folder
    wait_until(lambda: held(out) == 2 or process.poll() is not None, process=None)
    if process.poll() is None:
        cluster.lose_a_node()
    _, told = process.communicate(timeout=900)
    assert process.returncode == 0, told
    assert f"4 runs, {4 - kept} of them new" in told

    alone = start(tmp_path / "alone", "--jobs", "2")
    _, told = alone.communicate(timeout=900)
    assert alone.returncode == 0, told
    assert figures(out) == figures(tmp_path / "alone")
