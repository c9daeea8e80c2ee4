"""Claim: KnOTS-TIES of seven adapters never needs a dense update: 20 times as fast, in less than 3 GiB.

Seven bf16 LoRAs of rank 16 with the shapes of LLaMA-2-7B (``--layers 32`` is the whole model, 224 matrices).
The factors of each matrix are made when they are needed; this is not timed. TIES keeps a fifth of the entries
of an adapter over all matrices, so ours makes three passes.

The dense way forms ``[ΔW_1 | ... | ΔW_7]`` in float64 and decomposes it, once by ``torch.linalg.svd`` as in
the released code of KnOTS, and once through its Gram matrix, the fastest dense way we know. It is timed on
one matrix of the smallest shape and extrapolated: both cost ``O² T I`` operations per matrix. Its peak memory
is that of this matrix; larger shapes need up to 2.7 times as much. Each way runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import zlib
from typing import TYPE_CHECKING

import torch

from benchmarks.common import lora_factors, publish
from benchmarks.llama7b import MODULES
from intruscope.merge.options import MergeOptions
from intruscope.merge.rules import RULES, merge_matrices, merge_space, merge_ties
from intruscope.merge.spaces import make_space

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intruscope.merge.spaces import Space

TASKS = 7
RANK = 16
DENSE_MODULE = "self_attn.q_proj"
DENSITY = 0.2

Factors = list[tuple[torch.Tensor, torch.Tensor]]


def adapters(name: str, shape: tuple[int, int]) -> Factors:
    """The updates of one matrix, the same whenever they are asked for."""
    forms = []
    for task in range(TASKS):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {task}".encode()))
        a, b = lora_factors(*shape, RANK, 6.0, generator)
        forms.append((b.bfloat16(), a.bfloat16()))
    return forms


def ours(layers: int) -> dict[str, object]:
    """All matrices, one in memory at a time."""
    making = 0.0

    def spaces() -> Iterator[tuple[str, Space]]:
        nonlocal making
        for layer in range(layers):
            for module, shape in MODULES.items():
                name = f"{layer}.{module}"
                started = time.perf_counter()
                forms = adapters(name, shape)
                making += time.perf_counter() - started
                yield name, make_space(forms, space="knots")

    started = time.perf_counter()
    count = rank = 0
    for _, merged in merge_matrices(spaces, RULES["knots"], MergeOptions(density=DENSITY)):
        assert isinstance(merged, tuple)
        count, rank = count + 1, max(rank, merged[0].shape[1])
    seconds = time.perf_counter() - started - making
    return {"matrices": count, "rank": rank, "seconds": seconds}


def by_svd(joined: torch.Tensor) -> torch.Tensor:
    """Left singular vectors as the released code finds them."""
    left, values, _ = torch.linalg.svd(joined, full_matrices=False)
    return left[:, values > 1e-11 * values[0]]


def by_gram(joined: torch.Tensor) -> torch.Tensor:
    """The same from the Gram matrix, whose null space begins at half the digits."""
    squares, vectors = torch.linalg.eigh(joined @ joined.T)
    return vectors[:, squares > 1e-13 * squares[-1]]


DECOMPOSE = {"gram": by_gram, "svd": by_svd}


def dense(decompose: str) -> dict[str, object]:
    """One matrix, and how far its merged update is from ours."""
    shape = MODULES[DENSE_MODULE]
    forms = adapters(DENSE_MODULE, shape)
    options = MergeOptions(density=DENSITY, trim="matrix")
    started = time.perf_counter()
    joined = torch.cat([left.double() @ right.double() for left, right in forms], dim=1)
    left = DECOMPOSE[decompose](joined)
    parts = (left.T @ joined).split(shape[1], dim=1)
    merged = left @ merge_ties(parts, options)
    seconds = time.perf_counter() - started
    peak = peak_gib()
    up, down = merge_space(make_space(forms, space="knots"), RULES["knots"], options)
    difference = float((up @ down - merged).norm() / merged.norm())
    return {"seconds": seconds, "peak_memory_gib": peak, "difference": difference}


def peak_gib() -> float:
    """The most memory that this process has held (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def apart(way: str, layers: int) -> dict[str, float]:
    """One way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.merge_speed", "--layers", str(layers), "--way", way]
    # Threads that spin while they wait would slow each other down on a busy machine.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    print(f"{way}: {done.stdout.decode().strip()}", file=sys.stderr, flush=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dense", nargs="+", choices=list(DECOMPOSE), default=list(DECOMPOSE))
    parser.add_argument("--way", choices=["ours", *DECOMPOSE], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        found = ours(given.layers) if given.way == "ours" else dense(given.way)
        print(json.dumps({"peak_memory_gib": peak_gib(), **found}))
        return
    rows, columns = MODULES[DENSE_MODULE]
    # How many matrices of the timed shape the model is worth, by operations.
    equivalent = given.layers * sum(o * o * i for o, i in MODULES.values()) / (rows * rows * columns)
    quick = apart("ours", given.layers)
    record: dict[str, object] = {
        "layers": given.layers,
        "matrices": quick["matrices"],
        "merged_rank": quick["rank"],
        "seconds": round(quick["seconds"], 1),
        "seconds_per_matrix": round(quick["seconds"] / quick["matrices"], 3),
        "peak_memory_gib": round(quick["peak_memory_gib"], 2),
    }
    for way in given.dense:
        slow = apart(way, given.layers)
        whole = slow["seconds"] * equivalent
        record[f"dense_{way}"] = {
            "seconds_for_one_matrix": round(slow["seconds"], 1),
            "seconds_extrapolated": round(whole),
            "times_slower": round(whole / quick["seconds"]),
            "peak_memory_gib": round(slow["peak_memory_gib"], 2),
            "difference_of_the_merged_update": slow["difference"],
        }
    publish(f"merge_speed_{given.layers}_layers" if given.layers > 1 else "merge_speed", record)


if __name__ == "__main__":
    main()
