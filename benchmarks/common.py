"""Shared by the benchmarks: synthetic models on disk, timing, and the record of the environment."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
"""``make bench`` sets another folder, so that its small runs do not overwrite published results."""


def heavy_tailed(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A weight-like matrix: a Gaussian bulk and 64 outliers whose values fall like i^-0.7.

    Trained transformer weights look like this: a Marchenko-Pastur-like bulk and a heavy tail above it.
    """
    bulk = torch.randn(rows, columns, generator=generator) / columns**0.5
    outliers = 20.0 * torch.arange(1, 65, dtype=torch.float32).pow(-0.7)
    left = torch.linalg.qr(torch.randn(rows, 64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, 64, generator=generator))[0]
    return bulk.addmm_(left * outliers, right.T)


def lora_factors(
    rows: int, columns: int, rank: int, size: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of a LoRA update whose singular values reach about ``size`` and fall off along the rank."""
    falling = torch.linspace(1.0, 0.2, rank)
    a = torch.randn(rank, columns, generator=generator) / columns**0.5
    b = size * torch.randn(rows, rank, generator=generator) / rows**0.5 * falling
    return a, b


def write_pair(
    folder: Path,
    shapes: list[tuple[int, int]],
    *,
    rank: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> tuple[Path, Path]:
    """A base checkpoint with one Linear per shape and a PEFT LoRA adapter of it, both on disk."""
    generator = torch.Generator().manual_seed(seed)
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    weights, factors = {}, {}
    for index, (rows, columns) in enumerate(shapes):
        name = f"model.layers.{index}.mlp.up_proj"
        weights[f"{name}.weight"] = heavy_tailed(rows, columns, generator).to(dtype)
        a, b = lora_factors(rows, columns, rank, 6.0, generator)
        factors[f"base_model.model.{name}.lora_A.weight"] = a
        factors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    write_adapter_config(adapter, rank)
    return base, adapter


def write_adapter_config(adapter: Path, rank: int) -> None:
    """The configuration PEFT would write, with scaling one."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["up_proj"],
        "bias": "none",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def run_scan(base: Path, tuned: Path, work: Path, *options: str) -> tuple[float, float, dict]:
    """Time the whole command without resuming: (seconds, peak MiB of the largest process, the JSON)."""
    output = work / "scan.json"
    command = [sys.executable, "-m", "intruscope", "scan", str(base), str(tuned), "--json", str(output), "-q"]
    started = time.perf_counter()
    subprocess.run([*command, "--work", str(work / f"journal-{time.monotonic_ns()}"), *options], check=True)
    seconds = time.perf_counter() - started
    return seconds, 0.0, json.loads(output.read_text())


def paper_procedure(base: torch.Tensor, tuned: torch.Tensor, k: int = 10) -> torch.Tensor:
    """The paper's procedure: two dense SVDs in float32 and their similarity; alignments of the top k."""
    left_base = torch.linalg.svd(base, full_matrices=False)[0]
    left_tuned = torch.linalg.svd(tuned, full_matrices=False)[0]
    return (left_base.T @ left_tuned[:, :k]).abs().amax(dim=0)


def median_seconds(function, repeats: int) -> float:
    """Median wall time of a call."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def environment() -> dict[str, object]:
    """Where a figure was measured: processor features that matter, versions, cores."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "avx512": "avx512f" in flags,
        "bf16_instructions": "avx512_bf16" in flags or "amx_bf16" in flags,
    }


def publish(name: str, record: dict[str, object]) -> None:
    """Print a result and save it with its environment."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), **record}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
