"""A base and two tunings of it on disk, with intruders, and the naive float64 view of them."""

import hashlib
import json

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from intruscope import RunOptions
from intruscope.repair.plan import repair

CONFIG = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}'
SHAPES = {
    "model.layers.0.self_attn.q_proj": (48, 48),
    "model.layers.0.mlp.up_proj": (64, 48),
    "model.layers.1.mlp.down_proj": (48, 64),
    "model.layers.1.self_attn.k_proj": (24, 48),
}
RANK, ALPHA = 4, 6
INLINE = RunOptions(workers=0)


def bases(dtype=torch.float32):
    """Falling spectra, so that top vectors are well apart."""
    made = {}
    for seed, (name, (rows, columns)) in enumerate(SHAPES.items()):
        generator = torch.Generator().manual_seed(seed)
        size = min(rows, columns)
        left = torch.linalg.qr(torch.randn(rows, size, generator=generator))[0]
        right = torch.linalg.qr(torch.randn(columns, size, generator=generator))[0]
        values = 5.0 * torch.arange(1, size + 1).pow(-0.6)
        made[f"{name}.weight"] = ((left * values) @ right.T).to(dtype)
    made["model.embed_tokens.weight"] = torch.randn(40, 48, generator=torch.Generator().manual_seed(8)).to(
        dtype
    )
    made["model.norm.weight"] = torch.ones(48, dtype=dtype)
    return made


def factors(scale=1.0):
    """LoRA factors large enough for intruders in some matrices; the last one gets a small update."""
    made = {}
    for seed, (name, (rows, columns)) in enumerate(SHAPES.items()):
        generator = torch.Generator().manual_seed(100 + seed)
        size = scale * (0.02 if seed == 3 else 0.2)
        made[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.3
        made[f"base_model.model.{name}.lora_B.weight"] = size * torch.randn(rows, RANK, generator=generator)
    return made


def write_checkpoint(folder, tensors):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(CONFIG)
    return folder


def write_adapter(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def truth(name, base, adapter):
    """(W₀, ΔW) of one matrix in float64."""
    down = adapter[f"base_model.model.{name}.lora_A.weight"].double()
    up = adapter[f"base_model.model.{name}.lora_B.weight"].double()
    return base[f"{name}.weight"].double(), ALPHA / RANK * up @ down


def naive(before, update, k=10, epsilon=0.5):
    """Dense triplets of the tuned matrix and the indices of its intruders, by the paper's definition."""
    base_left = np.linalg.svd(before.numpy(), full_matrices=False)[0]
    left, values, right_t = np.linalg.svd((before + update).numpy(), full_matrices=False)
    alignment = np.abs(base_left.T @ left[:, :k]).max(axis=0)
    assert (np.abs(alignment - epsilon) > 1e-3).all(), "a case too close to the threshold to test with"
    intruders = [i for i in range(min(k, len(values))) if alignment[i] < epsilon]
    return left, values, right_t.T, intruders


def plan_of(models, tuned="adapter", **options):
    options = {"strength": 0.5, "options": INLINE, **options}
    return repair(str(models / "base"), str(models / tuned), **options)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def raw(path):
    """Tensor to its bytes, read without our code."""
    with safe_open(path, "pt") as file:
        return {
            name: file.get_tensor(name).contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for name in file.keys()  # noqa: SIM118 - it is no dict
        }
