"""Adapters that others published: all are read.

Where PEFT loads one, its own merge of a seeded base in float64 is the expected update, over the first layer
or two. All layers, and the formats that PEFT does not read, are held against the format's own arithmetic,
written out independently in float64.
"""

from __future__ import annotations

import json
import math
import os
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file

from intruscope.adapters.folder import find_adapter, open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UnsafeInput, UnsupportedFormat
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.names import parse_name
from intruscope.weights.source import open_model

pytestmark = pytest.mark.real


def _gpt2(num_labels):
    config = transformers.GPT2Config(n_layer=2, vocab_size=64, num_labels=num_labels, pad_token_id=0)
    return transformers.GPT2ForSequenceClassification(config)


def _distilbert():
    config = transformers.DistilBertConfig(n_layers=2, vocab_size=64, num_labels=2)
    return transformers.DistilBertForSequenceClassification(config)


def _gpt_neo():
    config = transformers.GPTNeoConfig(
        hidden_size=768, num_layers=2, num_heads=12, vocab_size=64, attention_types=[[["global", "local"], 1]]
    )
    return transformers.GPTNeoForCausalLM(config)


def _gpt_oss():
    config = transformers.GptOssConfig(
        num_hidden_layers=1, vocab_size=64, num_local_experts=2, num_experts_per_tok=1, intermediate_size=8,
        layer_types=["full_attention"],
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


# The model, and how many of its matrices the adapter changes: c_attn is q, k and v.
_LOADED_BY_PEFT = {
    "gpt2-seqcls-a": (lambda: _gpt2(6), 2 * 5 + 1),
    "gpt2-seqcls-b": (lambda: _gpt2(2), 2 * 5 + 1),
    "distilbert-sentiment": (_distilbert, 2 * 2 + 2),
    "gpt-neo-125m": (_gpt_neo, 2 * 2),
    "gpt-oss-20b": (_gpt_oss, 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _LOADED_BY_PEFT)
def test_the_update_is_what_peft_merges_in_float64(name, real_adapters, tmp_path):
    from peft import PeftModel

    make, count = _LOADED_BY_PEFT[name]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(model.double(), real_adapters / name)
    loaded.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    base, merged = open_model(tmp_path / "base"), open_model(tmp_path / "merged")
    pairing = pair_adapter(base, open_adapter(real_adapters / name))
    pairs = {pair.name: pair for pair in pairing.pairs}
    assert len(pairs) == count
    twins = base_matrices(merged).matrices
    for stored, views in base_matrices(base).matrices.items():
        for view, twin in zip(views, twins[stored], strict=True):
            base_OI, merged_OI = view.load(), twin.load()
            assert merged_OI.dtype == torch.float64
            if view.name not in pairs:
                assert torch.equal(base_OI.double(), merged_OI), view.name
                continue
            update = pairs[view.name].update.load(base_OI)
            if isinstance(update, DenseUpdate):
                got_OI = update.tuned_OI.double() - base_OI.double()
            else:
                got_OI = update.left_OR.double() @ update.right_RI.double()
            delta_OI = merged_OI - base_OI.double()
            scale = torch.linalg.vector_norm(delta_OI)
            assert scale > 0
            # The factors are read in float32, as they are stored, and scaled there.
            assert torch.linalg.vector_norm(got_OI - delta_OI) <= 2e-7 * scale, view.name


# Model type, alpha / rank, whether (out, in) is stored transposed (Conv1D), modules, last layer.
_PEFT = {
    "gpt2-seqcls-a": ("gpt2", 32 / 8, True, 36, 11),
    "gpt2-seqcls-b": ("gpt2", 32 / 8, True, 36, 11),
    "distilbert-sentiment": ("distilbert", 32 / 4, False, 12, 5),
    "gpt-neo-125m": ("gpt_neo", 16 / 8, False, 24, 11),
    "gpt-oss-20b": ("gpt_oss", 8 / 4, False, 48, 23),
}


def _base(folder, shapes, config):
    """A base of zeros, as a file with a hole: the update does not depend on it, and it may be large."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "model.safetensors", 8 + len(text) + end)
    return open_model(folder)


def _deltas(pairing, names):
    """Module name to its update, the parts of fused matrices put together in their stored row order."""
    whole = {}
    for pair in pairing.pairs:
        view = pair.base
        name = view.tensor.name.removesuffix(".weight")
        if name not in names:
            continue
        update = pair.update.load(torch.empty(0))
        delta = update.left_OR.double() @ update.right_RI.double()
        target = whole.setdefault(name, torch.zeros(view.whole_shape, dtype=torch.float64))
        rows = range(len(delta)) if view.rows is None else view.rows.indices()
        target[list(rows)] = delta
    return whole


def _check(pairing, expected):
    """Every expected module, in float64."""
    got = _deltas(pairing, expected)
    assert got.keys() == expected.keys()
    for name, delta in expected.items():
        assert torch.linalg.vector_norm(delta) > 0
        assert torch.linalg.vector_norm(got[name] - delta) <= 1e-6 * torch.linalg.vector_norm(delta), name


@pytest.mark.parametrize("name", _PEFT)
def test_published_peft_adapters(name, real_adapters, tmp_path):
    model_type, scaling, conv1d, count, last = _PEFT[name]
    path = find_adapter(parse_name(str(real_adapters / name)))
    tensors = load_file(real_adapters / name / "adapter_model.safetensors")
    shapes, expected = {}, {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            shape = (len(up), down.shape[1])
            shapes[module] = shape[::-1] if conv1d else shape
            if str(last) in key.split("."):  # dense twins of all of them would take long
                expected[module] = scaling * up.double() @ down.double()
    assert len(shapes) == count
    assert expected
    base = _base(tmp_path / "base", shapes, {"model_type": model_type})
    pairing = pair_adapter(base, open_adapter(path))
    assert len({pair.base.tensor.name for pair in pairing.pairs}) == count
    assert pairing.complete
    _check(pairing, expected)
    assert {e.tensor for e in pairing.coverage if e.origin == "adapter"} == set(tensors)


def test_bloom_with_enable_lora(real_adapters, tmp_path):
    folder = real_adapters / "bloom-560m-enable-lora"
    with pytest.raises(UnsafeInput):
        open_adapter(folder)
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")
    downs = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): key
        for key in tensors
        if key.endswith("lora_A.weight")
    }
    assert len(downs) == 24
    expected = {}
    for module, key in downs.items():
        if ".h.0." in module or ".h.23." in module:  # of all of them, dense twins would take long
            down = tensors[key]
            up = tensors[key.replace("lora_A", "lora_B")]
            # As MergedLinear merged: a grouped convolution, scaled by alpha / r, padded to enabled thirds.
            grouped = torch.nn.functional.conv1d(down.double()[None], up.double(), groups=2)[0] * (16 / 8)
            delta = torch.zeros(3072, 1024, dtype=torch.float64)
            delta[:1024], delta[2048:] = grouped[:1024], grouped[1024:]
            expected[module] = delta
    shapes = dict.fromkeys(downs, (3072, 1024))
    base = _base(tmp_path / "base", shapes, {"model_type": "bloom", "hidden_size": 1024, "n_head": 16})
    pairing = pair_adapter(base, open_adapter(folder, allow_pickle=True))
    assert [p.kind for p in pairing.pairs] == ["q", "k", "v"] * 24
    assert pairing.complete
    assert len(expected) == 2
    _check(pairing, expected)


def test_loralib_needs_its_alpha(real_adapters, tmp_path):
    folder = real_adapters / "roberta-base-mnli-loralib"
    with pytest.raises(UnsupportedFormat, match="--lora-alpha"):
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
    _check(pairing, expected)


def test_diffusers_attention_processors(real_adapters, tmp_path):
    folder = real_adapters / "sd15-diffusers-unet"
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    shapes, expected = {}, {}
    for key, down in tensors.items():
        if key.endswith("_lora.down.weight"):
            module = key.removesuffix("_lora.down.weight").replace("processor.", "")
            module += ".0" if module.endswith("to_out") else ""
            up = tensors[key.replace(".down.", ".up.")]
            shapes[module] = (len(up), down.shape[1])
            if module.startswith(("down_blocks.0.", "up_blocks.3.")):
                expected[module] = up.double() @ down.double()
    assert len(shapes) == 128
    assert {shapes[module] for module in expected} == {(320, 320), (320, 768)}
    pairing = pair_adapter(_base(tmp_path / "base", shapes, {}), open_adapter(folder))
    assert len(pairing.pairs) == 128
    assert pairing.complete
    _check(pairing, expected)
