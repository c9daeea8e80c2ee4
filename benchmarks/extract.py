"""Claim: extracting an adapter is faster than truncating a dense SVD of each update, and loses nothing.

Per shape and rank: a base and a full fine-tune on disk. The singular values of the update fall like i^-0.5
over all directions, because a full fine-tune has a long spectrum. The whole command ``intruscope extract``,
with its checks and scans, is compared with a dense float32 ``torch.linalg.svd`` of one update in memory, in
the same run. Errors of both are measured in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.common import heavy_tailed, median_seconds, publish

SHAPES = [(4096, 4096), (4096, 11008)]
RANKS = [16, 64]


def falling_update(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """An update whose singular values fall like i^-0.5, in random directions."""
    size = min(rows, columns)
    values = torch.arange(1, size + 1, dtype=torch.float32) ** -0.5
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator))[0]
    return (left * values) @ right.T


def naive(update: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The usual way: one dense SVD in float32, truncated."""
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def error_of(update: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> float:
    """Relative Frobenius error in float64."""
    exact = update.double()
    return float((exact - up.double() @ down.double()).norm() / exact.norm())


def write_pair(folder: Path, base: torch.Tensor, update: torch.Tensor, matrices: int) -> None:
    for name, tensor in (("base", base), ("tuned", base + update)):
        (folder / name).mkdir()
        weights = {f"model.layers.{i}.mlp.up_proj.weight": tensor.clone() for i in range(matrices)}
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (folder / name / "config.json").write_text(json.dumps(config))


def run_extract(folder: Path, rank: int) -> float:
    """Seconds for the whole command, without resuming."""
    out = folder / f"out-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "intruscope", "extract", str(folder / "base"), str(folder / "tuned")]
    started = time.perf_counter()
    subprocess.run([*command, "--rank", str(rank), "-o", str(out), "-q", "--work", f"{out}-work"], check=True)
    seconds = time.perf_counter() - started
    (folder / "last").unlink(missing_ok=True)
    (folder / "last").symlink_to(out)
    return seconds


def measure(shape: tuple[int, int], ranks: list[int], matrices: int, repeats: int) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(7)
    base = heavy_tailed(*shape, generator)
    update = (base + falling_update(*shape, generator)) - base  # after rounding to float32 weights
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pair(folder, base, update, matrices)
        for rank in ranks:
            made = []
            dense = median_seconds(lambda made=made, rank=rank: made.append(naive(update, rank)), repeats)
            seconds = statistics.median(run_extract(folder, rank) for _ in range(repeats))
            stored = load_file(folder / "last" / "adapter_model.safetensors")
            place = "base_model.model.model.layers.0.mlp.up_proj"
            stated = json.loads((folder / "last" / "intruscope_extract.json").read_text())["matrices"][0]
            ours = error_of(update, stored[f"{place}.lora_B.weight"], stored[f"{place}.lora_A.weight"])
            rows.append(
                {
                    "shape": list(shape),
                    "rank": rank,
                    "matrices": matrices,
                    "command_seconds_per_matrix": round(seconds / matrices, 2),
                    "dense_seconds_per_matrix": round(dense, 2),
                    "ratio": round(dense * matrices / seconds, 1),
                    "relative_error": ours,
                    "relative_error_stated": stated["relative_error"],
                    "relative_error_dense": error_of(update, *made[-1]),
                    "certificate": stated["certificate"],
                    "spectral": [stated["spectral_low"], stated["spectral_high"]],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", nargs="*", default=[f"{r}x{c}" for r, c in SHAPES])
    parser.add_argument("--ranks", nargs="*", type=int, default=RANKS)
    given = parser.parse_args()
    rows = []
    for text in given.shapes:
        first, second = (int(side) for side in text.split("x"))
        rows += measure((first, second), given.ranks, given.matrices, given.repeats)
    publish("extract", {"rows": rows})


if __name__ == "__main__":
    main()
