"""Small real checkpoints with a known change: an intruder planted where and how the test says."""

import torch
from safetensors.torch import save_file

CONFIG = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}'


def base_matrix(rows, columns, seed):
    """Falling spectrum with clear gaps, so that every top vector is well defined."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64))[0]
    values = 10.0 * torch.arange(1, size + 1, dtype=torch.float64).pow(-0.7)
    return left, values, right


def plant(left, values, right, *, index, alignment, strength=1.0, seed=0):
    """A tuned matrix whose singular vector ``index`` has the given alignment with its best base vector.

    The new left vector mixes base vector ``index`` (share ``alignment``) with many others evenly, so
    that no other comes near; it replaces that vector, at ``strength`` times its singular value.
    """
    generator = torch.Generator().manual_seed(seed)
    size = left.shape[1]
    tail = torch.randn(size - 20, generator=generator, dtype=torch.float64).sign()
    mixed = left[:, 20:] @ (tail / tail.norm())
    new_left, new_values = left.clone(), values.clone()
    new_left[:, index] = alignment * left[:, index] + (1 - alignment**2) ** 0.5 * mixed
    new_values[index] *= strength
    # The mixture must not stay in the tail, or the columns would no longer be orthogonal.
    new_left[:, 20:] = new_left[:, 20:] - mixed.unsqueeze(1) * (mixed @ new_left[:, 20:])
    return new_left @ torch.diag(new_values) @ right.T


def write_model(folder, matrices):
    """A checkpoint with the given matrices as q_proj of consecutive layers."""
    folder.mkdir(parents=True)
    tensors = {
        f"model.layers.{i}.self_attn.q_proj.weight": matrix.contiguous() for i, matrix in enumerate(matrices)
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(CONFIG)
    return folder
