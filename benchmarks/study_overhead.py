"""Claim: the overhead of a study is less than 3% of the training that it runs.

Runs a part of the scale ``mini`` (the shipped model, no data needed) through ``run_study`` in one process and
measures processor time, which other work on the machine hardly affects. Overhead is everything except
training and measuring: starting the worker, reading and hashing the inputs, folders, records, the journal. It
is compared with the training alone, so that measuring does not hide it. The cost per study and the cost of
the parent process are separated from the cost per run.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common import publish
from intruscope.demo.unpack import unpack
from intruscope.studies import pool, scales
from intruscope.studies.recipes import places


def core_seconds() -> float:
    """Processor time of this process and of all its finished children."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="counts")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--out",
        help="new folder for the study; intruscope study run --known can reuse it",
    )
    given = parser.parse_args()
    scale = replace(scales.MINI, bases=(scales.DEMO,))
    seeds = list(range(given.seeds))
    num_runs = len(pool.wanted(places(scale, [given.study], of_seeds=seeds)))
    with tempfile.TemporaryDirectory() as folder:
        started = core_seconds()
        out = Path(given.out) if given.out else Path(folder) / "study"
        report = pool.run_study(scale, out, recipes=[given.study], seeds=seeds, unpack=unpack)
        whole = core_seconds() - started
    pool.check_complete(report)
    if report.num_new != num_runs:
        parser.error(f"{given.out} already contains some of the {num_runs} runs; give a new folder")
    records = report.records.values()
    training = sum(record["train_core_seconds"] for record in records)
    measuring = sum(record["measure_core_seconds"] for record in records)
    in_runs = sum(record["core_seconds"] for record in records) - training - measuring
    once = whole - training - measuring - in_runs
    num_all = len(pool.wanted(places(scales.MINI)))
    publish(
        "study_overhead",
        {
            "study": given.study,
            "runs": num_runs,
            "core_seconds": whole,
            "training_core_seconds": training,
            "measuring_core_seconds": measuring,
            "machinery_over_training": (once + in_runs) / training,
            "once_core_seconds": once,
            "per_run_core_seconds": in_runs / num_runs,
            "machinery_over_training_at_mini": (once / num_all + in_runs / num_runs) / (training / num_runs),
        },
    )


if __name__ == "__main__":
    main()
