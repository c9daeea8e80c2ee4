"""Claim: ten rank-16 adapters of a 7B model (224 matrices) are compared without their base in under a minute.

Creates the adapters in a temporary folder (``--layers 32`` is the whole model, 160 MB each; the default is 4
layers), runs the whole command on two workers and samples the memory of all its processes. The alternative in
the same run forms dense float64 updates and takes their cosines and signs, without angles; it is timed on one
pair of each shape.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.common import lora_factors, publish, write_adapter_config
from benchmarks.llama7b import MODULES, resident_bytes


def write_adapter(folder: Path, layers: int, seed: int) -> Path:
    """One adapter with its own A and B."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in range(layers):
        for module, (rows, columns) in MODULES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            a, b = lora_factors(rows, columns, 16, 6.0, generator)
            factors[f"{name}.lora_A.weight"], factors[f"{name}.lora_B.weight"] = a, b
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_adapter_config(folder, 16)
    return folder


def dense_seconds(count: int, layers: int) -> float:
    """Processor seconds for cosines and signs of all pairs of formed updates, from one pair of each shape."""
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for rows, columns in sorted(set(MODULES.values())):
        factors = [lora_factors(rows, columns, 16, 6.0, generator) for _ in range(2)]
        started = time.process_time()
        first, second = (b.double() @ a.double() for a, b in factors)
        formed = time.process_time()
        (first * second).sum()
        ((first > 0) != (second > 0)).sum()
        compared = time.process_time()
        seconds = count / 2 * (formed - started) + math.comb(count, 2) * (compared - formed)
        total += seconds * layers * sum(shape == (rows, columns) for shape in MODULES.values())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters = [
            write_adapter(folder / f"adapter-{seed}", given.layers, seed) for seed in range(given.adapters)
        ]
        output = folder / "compare.json"
        command = [sys.executable, "-m", "intruscope", "compare", *map(str, adapters), "--json", str(output)]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "-q", "--workers", "2", "--work", str(folder / "journal")])
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                peak[0] = max(peak[0], resident_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
        if code:
            raise SystemExit(code)
        report = json.loads(output.read_text())
        size = output.stat().st_size
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    dense = dense_seconds(given.adapters, given.layers)
    publish(
        f"compare_{given.adapters}_adapters_{given.layers}_layers",
        {
            "adapters": given.adapters,
            "matrices": len(report["merge"]["modules"]),
            "pairs": len(report["pairs"]),
            "seconds": round(seconds, 1),
            "processor_seconds": round(spent, 1),
            "peak_memory_gib": round(peak[0] / 2**30, 2),
            "report_mib": round(size / 2**20, 1),
            "dense_processor_seconds": round(dense, 1),
            "times_faster": round(dense / spent, 1),
            "largest_cosine_in_spreads": round(
                max(abs(pair["cosine"]) / pair["cosine_random_spread"] for pair in report["pairs"]), 2
            ),
            "energy_ratio": report["merge"]["energy_ratio"],
            "expected_overlap": math.fsum(pair["left_overlap_random"] for pair in report["pairs"])
            / len(report["pairs"]),
            "overlap": math.fsum(pair["left_overlap"] for pair in report["pairs"]) / len(report["pairs"]),
        },
    )


if __name__ == "__main__":
    main()
