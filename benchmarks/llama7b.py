"""Claim: a LLaMA-2-7B-shaped pair (bf16, LoRA r=16 on every linear layer) scans in minutes in little memory.

Creates the files in a temporary folder (``--layers 32`` is the whole model, 224 matrices, 13 GB; the default
is 2 layers), runs the whole command and samples the memory of all its processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.common import lora_factors, publish, write_adapter_config

MODULES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}


def weight(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Like ``heavy_tailed`` but with outliers that are not orthogonalised: fast enough for 224 matrices."""
    bulk = torch.randn(rows, columns, generator=generator) / columns**0.5
    outliers = 20.0 * torch.arange(1, 65, dtype=torch.float32).pow(-0.7)
    left = torch.randn(rows, 64, generator=generator) / rows**0.5
    right = torch.randn(64, columns, generator=generator) / columns**0.5
    return bulk.addmm_(left * outliers, right).to(torch.bfloat16)


def write_model(folder: Path, layers: int) -> tuple[Path, Path]:
    """Write one shard per layer, an index, and the adapter."""
    generator = torch.Generator().manual_seed(0)
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    index, factors = {}, {}
    for layer in range(layers):
        shard = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        tensors = {}
        for module, (rows, columns) in MODULES.items():
            name = f"model.layers.{layer}.{module}"
            tensors[f"{name}.weight"] = weight(rows, columns, generator)
            index[f"{name}.weight"] = shard
            a, b = lora_factors(rows, columns, 16, 6.0, generator)
            factors[f"base_model.model.{name}.lora_A.weight"] = a
            factors[f"base_model.model.{name}.lora_B.weight"] = b
        save_file(tensors, base / shard, metadata={"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (base / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    write_adapter_config(adapter, 16)
    return base, adapter


def model_files(folder: Path, layers: int) -> tuple[Path, Path]:
    """The model in a folder, created if it does not exist."""
    if (folder / "adapter" / "adapter_config.json").exists():  # written last
        return folder / "base", folder / "adapter"
    return write_model(folder, layers)


def resident_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants (shared pages counted once)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument(
        "--files", type=Path, help="Keep the model in this folder, and reuse it if it exists."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, adapter = model_files(given.files or folder, given.layers)
        output = folder / "scan.json"
        command = [
            sys.executable,
            "-m",
            "intruscope",
            "scan",
            str(base),
            str(adapter),
            "--json",
            str(output),
            "-q",
        ]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--work", str(folder / "journal")])
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                peak[0] = max(peak[0], resident_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
        if code:
            raise SystemExit(code)
        report = json.loads(output.read_text())
    publish(
        f"llama7b_{given.layers}_layers",
        {
            "layers": given.layers,
            "matrices": len(report["matrices"]),
            "seconds": round(seconds, 1),
            "seconds_per_matrix": round(seconds / len(report["matrices"]), 2),
            "peak_memory_gib": round(peak[0] / 2**30, 2),
            "intruders": report["totals"]["num_intruders"],
        },
    )


if __name__ == "__main__":
    main()
