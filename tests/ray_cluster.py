"""A Ray cluster on this machine: a head without processors, and two nodes of one processor each.

Run as a program it says its address and does as its input says; the cluster ends with its input. Tests start
it by the function here.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

_STORE_BYTES = 80 << 20


class Cluster:
    """A cluster that runs."""

    def __init__(self, process):
        self._process = process
        self.address = self._answer()

    def lose_a_node(self):
        """Kill the processes of one node; the other one is left."""
        self._process.stdin.write("lose\n")
        self._process.stdin.flush()
        assert self._answer() == "lost"

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith("cluster: "):
                return line.removeprefix("cluster: ").strip()
        raise AssertionError("the cluster ended")


@contextmanager
def two_nodes(log, **environment):
    """Start one; what it and its workers say goes to a file."""
    with Path(log).open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", **environment},
        )
        try:
            yield Cluster(process)
        finally:
            process.stdin.close()
            process.wait(timeout=120)
            process.stdout.close()


def started():
    """A cluster and its two nodes; Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    from ray.cluster_utils import Cluster as Simulated

    size = {"object_store_memory": _STORE_BYTES}
    head = {"num_cpus": 0, "include_dashboard": False, **size}
    for is_last in (False, False, True):
        cluster = Simulated(initialize_head=False)
        try:
            cluster.add_node(**head)
            nodes = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
            cluster.wait_for_nodes()
        except Exception:
            cluster.shutdown()
            if is_last:
                raise
        else:
            return cluster, nodes
    raise AssertionError


def main():
    cluster, nodes = started()
    print("cluster:", cluster.address, flush=True)
    for line in sys.stdin:
        assert line == "lose\n"
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("cluster: lost", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
