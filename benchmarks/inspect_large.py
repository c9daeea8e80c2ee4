"""Claim: a rank-64 adapter of a LLaMA-70B-shaped model is inspected in under 30 s and 500 MiB on two cores.

Writes the adapter to a temporary folder (``--layers 80`` is the whole model: 560 modules, 1.7 GB in bfloat16;
the default is 4 layers), runs the whole command, and reads the peak of its memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.common import lora_factors, publish, write_adapter_config

RANK = 64
MODULES = {
    "self_attn.q_proj": (8192, 8192),
    "self_attn.k_proj": (1024, 8192),
    "self_attn.v_proj": (1024, 8192),
    "self_attn.o_proj": (8192, 8192),
    "mlp.gate_proj": (28672, 8192),
    "mlp.up_proj": (28672, 8192),
    "mlp.down_proj": (8192, 28672),
}


def write_adapter(folder: Path, layers: int) -> int:
    """Write the adapter; returns the bytes of its weights."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for layer in range(layers):
        for module, (rows, columns) in MODULES.items():
            a, b = lora_factors(rows, columns, RANK, 6.0, generator)
            name = f"base_model.model.model.layers.{layer}.{module}"
            factors[f"{name}.lora_A.weight"] = a.to(torch.bfloat16)
            factors[f"{name}.lora_B.weight"] = b.to(torch.bfloat16)
    weights = folder / "adapter_model.safetensors"
    save_file(factors, weights, metadata={"format": "pt"})
    write_adapter_config(folder, RANK)
    return weights.stat().st_size


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; the highest resident memory that it had."""
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmHWM:"))])
        time.sleep(0.1)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = write_adapter(folder / "adapter", given.layers)
        adapter_folder = folder / "adapter"
        output = folder / "inspect.json"
        command = [sys.executable, "-m", "intruscope", "inspect", str(adapter_folder)]
        command += ["--json", str(output), "-q"]
        started = time.perf_counter()
        process = subprocess.Popen(command)
        peak = peak_bytes(process)
        code = process.wait()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = time.perf_counter() - started
        if code:
            raise SystemExit(code)
        (adapter,) = json.loads(output.read_text())["adapters"]
    modules = adapter["modules"]
    publish(
        f"inspect_large_{given.layers}_layers",
        {
            "layers": given.layers,
            "rank": RANK,
            "modules": len(modules),
            "file_gb": round(num_bytes / 1e9, 2),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "milliseconds_per_module": round(1000 * seconds / len(modules), 1),
            "peak_memory_mib": round(peak / 2**20),
        },
    )


if __name__ == "__main__":
    main()
