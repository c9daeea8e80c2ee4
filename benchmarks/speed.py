"""Claim: a scan is tens of times faster than the paper's two dense SVDs per matrix.

Per shape: a base and a LoRA r=16 adapter with ``--matrices`` matrices on disk. The whole command, with
default options and without resuming, is compared with the paper's procedure on one of the matrices (times the
number of matrices), in the same run. Start-up is part of the command; with one matrix it dominates.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import (
    heavy_tailed,
    lora_factors,
    median_seconds,
    paper_procedure,
    publish,
    run_scan,
    write_pair,
)

SHAPES = [(4096, 4096), (4096, 11008), (11008, 4096)]


def measure(shape: tuple[int, int], matrices: int, repeats: int) -> dict[str, object]:
    rows, columns = shape
    generator = torch.Generator().manual_seed(7)
    base = heavy_tailed(rows, columns, generator)
    a, b = lora_factors(rows, columns, 16, 6.0, generator)
    dense = median_seconds(partial(paper_procedure, base, base + b @ a), max(1, repeats // 3))
    del base
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pair(folder, [shape] * matrices)
        runs = [run_scan(*paths, folder) for _ in range(repeats)]
    seconds = statistics.median(run[0] for run in runs)
    certificates: dict[str, int] = {}
    for matrix in runs[0][2]["matrices"]:
        for certificate in matrix["certificates"]:
            certificates[certificate] = certificates.get(certificate, 0) + 1
    return {
        "shape": list(shape),
        "matrices": matrices,
        "command_seconds": round(seconds, 2),
        "command_seconds_all": [round(run[0], 2) for run in runs],
        "dense_seconds_per_matrix": round(dense, 2),
        "ratio": round(dense * matrices / seconds, 1),
        "certificates": certificates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", nargs="*", default=[f"{r}x{c}" for r, c in SHAPES])
    given = parser.parse_args()
    shapes = [tuple(int(side) for side in text.split("x")) for text in given.shapes]
    publish("speed", {"rows": [measure(shape, given.matrices, given.repeats) for shape in shapes]})


if __name__ == "__main__":
    main()
