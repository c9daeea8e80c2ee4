"""Claim: the machinery of a study takes less than 3% of the training that it runs.

A part of the scale ``mini`` (the shipped model, no data needed) through ``run_study``, one process. What is
neither training nor measuring is the machinery: starting the worker, reading and hashing the inputs, folders,
records, the journal. It is set against the training alone, so that measuring does not hide it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.common import publish
from intruscope.demo.unpack import unpack
from intruscope.studies import pool, scales
from intruscope.studies.recipes import places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="counts")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    scale = replace(scales.MINI, bases=(scales.DEMO,), more_seeds={})
    seeds = list(range(given.seeds))
    num_runs = len(pool.wanted(places(scale, [given.study], of_seeds=seeds)))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        out = Path(folder) / "study"
        report = pool.run_study(scale, out, recipes=[given.study], seeds=seeds, unpack=unpack)
        whole = time.perf_counter() - started
    pool.check_complete(report)
    training = sum(record["train_seconds"] for record in report.records.values())
    measuring = sum(record["measure_seconds"] for record in report.records.values())
    machinery = whole - training - measuring
    print(f"{num_runs} runs in {whole:.0f} s: training {training:.0f}, measuring {measuring:.0f}")
    print(f"machinery over training: {100 * machinery / training:.2f}%")
    publish(
        "study_overhead",
        {
            "study": given.study,
            "runs": num_runs,
            "seconds": whole,
            "training_seconds": training,
            "measuring_seconds": measuring,
            "machinery_over_training": machinery / training,
        },
    )


if __name__ == "__main__":
    main()
