"""Adapters that others published: all are read, on a synthetic base of their modules' shapes.

The expected update is each format's own arithmetic, written out independently in float64.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from intruscope.adapters.folder import find_adapter, open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UnsafeInput, UnsupportedFormat
from intruscope.weights.names import parse_name
from intruscope.weights.source import open_model

pytestmark = pytest.mark.real

# Folder, model type, alpha / rank, and which module's (out, in) is stored transposed (Conv1D).
_PEFT = {
    "gpt2-seqcls-a": ("gpt2", 32 / 8, True, 36),
    "gpt2-seqcls-b": ("gpt2", 32 / 8, True, 36),
    "distilbert-sentiment": ("distilbert", 32 / 4, False, 12),
    "gpt-neo-125m": ("gpt_neo", 16 / 8, False, 24),
    "gpt-oss-20b": ("gpt_oss", 8 / 4, False, 4),
}


def _base(folder, shapes, config):
    """A base of zeros: headers and shapes are what is tested, and the update does not depend on it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{name}.weight": torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return open_model(folder)


def _deltas(pairing):
    """Module name to its update, the parts of fused matrices put together in their stored row order."""
    whole = {}
    for pair in pairing.pairs:
        update = pair.update.load(torch.empty(0))
        if not hasattr(update, "left_OR"):
            continue
        delta = update.left_OR.double() @ update.right_RI.double()
        view = pair.base
        target = whole.setdefault(
            view.tensor.name.removesuffix(".weight"), torch.zeros(view.whole_shape, dtype=torch.float64)
        )
        rows = range(len(delta)) if view.rows is None else view.rows.indices()
        target[list(rows)] = delta
    return whole


def _check(got, expected):
    assert got.keys() == expected.keys()
    for name, delta in expected.items():
        assert torch.linalg.vector_norm(delta) > 0
        assert torch.linalg.vector_norm(got[name] - delta) <= 1e-6 * torch.linalg.vector_norm(delta), name


@pytest.mark.parametrize("name", _PEFT)
def test_published_peft_adapters(name, real_adapters, tmp_path):
    model_type, scaling, conv1d, count = _PEFT[name]
    path = find_adapter(parse_name(str(real_adapters / name)))
    tensors = load_file(real_adapters / name / "adapter_model.safetensors")
    expected = {}
    for key, down in tensors.items():
        # Two layers of the large one: dense twins of all 48 modules would take gigabytes.
        is_left_out = model_type == "gpt_oss" and not {"0", "23"} & set(key.split("."))
        if key.endswith(".lora_A.weight") and not is_left_out:
            up = tensors[key.replace("lora_A", "lora_B")]
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            expected[module] = scaling * up.double() @ down.double()
    assert len(expected) == count
    shapes = {m: tuple(d.shape[::-1] if conv1d else d.shape) for m, d in expected.items()}
    base = _base(tmp_path / "base", shapes, {"model_type": model_type})
    pairing = pair_adapter(base, open_adapter(path))
    _check(_deltas(pairing), expected)
    assert {e.tensor for e in pairing.coverage if e.origin == "adapter"} == set(tensors)
    assert pairing.complete == (model_type != "gpt_oss")


def test_bloom_with_enable_lora(real_adapters, tmp_path):
    folder = real_adapters / "bloom-560m-enable-lora"
    with pytest.raises(UnsafeInput):
        open_adapter(folder)
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")
    expected = {}
    for key, down in tensors.items():
        if key.endswith("lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            # As MergedLinear merged: a grouped convolution, scaled by alpha / r, padded to enabled thirds.
            grouped = torch.nn.functional.conv1d(down.double()[None], up.double(), groups=2)[0] * (16 / 8)
            delta = torch.zeros(3072, 1024, dtype=torch.float64)
            delta[:1024], delta[2048:] = grouped[:1024], grouped[1024:]
            expected[key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = delta
    shapes = dict.fromkeys(expected, (3072, 1024))
    base = _base(tmp_path / "base", shapes, {"model_type": "bloom", "hidden_size": 1024, "n_head": 16})
    pairing = pair_adapter(base, open_adapter(folder, allow_pickle=True))
    assert {p.kind for p in pairing.pairs} == {"q", "k", "v"}
    _check(_deltas(pairing), expected)


def test_loralib_needs_its_alpha(real_adapters, tmp_path):
    folder = real_adapters / "roberta-base-mnli-loralib"
    with pytest.raises(UnsupportedFormat, match="lora_alpha"):
        open_adapter(folder, allow_pickle=True)
    tensors = torch.load(folder / "roberta_base_lora_mnli.bin", weights_only=True, map_location="cpu")
    expected = {
        key.removesuffix(".lora_A"): 16 / 8 * tensors[key[:-1] + "B"].double() @ down.double()
        for key, down in tensors.items()
        if key.endswith(".lora_A")
    }
    base = _base(
        tmp_path / "base", {m: tuple(d.shape) for m, d in expected.items()}, {"model_type": "roberta"}
    )
    pairing = pair_adapter(base, open_adapter(folder, allow_pickle=True, lora_alpha=16))
    _check(_deltas(pairing), expected)


def test_diffusers_attention_processors(real_adapters, tmp_path):
    folder = real_adapters / "sd15-diffusers-unet"
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    expected = {}
    for key, down in tensors.items():
        if key.endswith("_lora.down.weight"):
            module = key.removesuffix("_lora.down.weight").replace("processor.", "")
            module += ".0" if module.endswith("to_out") else ""
            expected[module] = tensors[key.replace(".down.", ".up.")].double() @ down.double()
    assert len(expected) == 128
    assert math.prod(expected[next(iter(expected))].shape) == 320 * 320
    base = _base(tmp_path / "base", {m: tuple(d.shape) for m, d in expected.items()}, {})
    _check(_deltas(pair_adapter(base, open_adapter(folder))), expected)
