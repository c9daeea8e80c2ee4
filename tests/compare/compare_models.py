"""Adapters with known updates, as files: PEFT's format, written tensor by tensor."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "sweep"))

SHAPE = (48, 40)


def module(layer):
    return f"model.layers.{layer}.mlp.up_proj"


def write_lora(folder, factors, *, scaling=1.0, base="base"):
    """An adapter from (B, A) by layer; ``scaling`` is alpha / r."""
    folder.mkdir(parents=True)
    tensors, rank = {}, 0
    for layer, (left, right) in factors.items():
        rank = left.shape[1]
        name = f"base_model.model.{module(layer)}"
        tensors[f"{name}.lora_B.weight"] = left.float().contiguous()
        tensors[f"{name}.lora_A.weight"] = right.float().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scaling * rank,
        "target_modules": ["up_proj"],
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def random_factors(seed, *, rank=3, layers=2, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return {
        layer: tuple(
            torch.from_numpy(rng.standard_normal(size)).float()
            for size in ((shape[0], rank), (rank, shape[1]))
        )
        for layer in range(layers)
    }


def rank_one(left, right, size):
    """size · u vᵀ as factors, in one layer."""
    return {0: (size * left.reshape(-1, 1), right.reshape(1, -1))}


def make_dora(folder, base):
    """Turn an adapter into a DoRA with 1.1 times the norms that its rows have; gives ΔW by module."""
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, updates = load_file(path), updates_of(folder)
    for name, update in updates.items():
        start = base[f"{name}.weight"].double()
        directed = start + update
        tensors[f"base_model.model.{name}.lora_magnitude_vector"] = (1.1 * directed.norm(dim=1)).float()
        updates[name] = 1.1 * directed - start
    save_file(tensors, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    return updates


def break_tensor(folder, layer, value):
    """Put one number that is not finite into an adapter."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{module(layer)}.lora_A.weight"][0, 0] = value
    save_file(tensors, path)


def updates_of(folder):
    """ΔW of each module of an adapter, dense float64, from its files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scaling = config["lora_alpha"] / config["r"]
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scaling
        * tensors[name.replace("lora_A", "lora_B")].double()
        @ tensor.double()
        for name, tensor in tensors.items()
        if name.endswith("lora_A.weight")
    }
