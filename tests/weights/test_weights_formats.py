"""Packed weights against the formula of their format in float64, and a format that is added in one file."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from intruscope import RunOptions, scan
from intruscope.errors import UnsupportedFormat
from intruscope.weights import number_formats
from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model
from intruscope.weights.stored import StoredTensor

NAME = "layers.0.mlp.up_proj"
INLINE = RunOptions(workers=0)


def write(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def packed(weight, block, scales_like=0.02):
    """Float8 numbers and scales of a matrix, and what they mean: one entry after another, in float64."""
    rows, columns = (math.ceil(size / step) for size, step in zip(weight.shape, block, strict=True))
    generator = torch.Generator().manual_seed(3)
    scales = scales_like * (1.0 + torch.rand(rows, columns, generator=generator))
    each = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    numbers = (weight / each[: weight.shape[0], : weight.shape[1]]).to(torch.float8_e4m3fn)
    meaning = torch.tensor(
        [
            [
                float(numbers[i, j].double()) * float(scales[i // block[0], j // block[1]].double())
                for j in range(weight.shape[1])
            ]
            for i in range(weight.shape[0])
        ],
        dtype=torch.float64,
    )
    return numbers, scales, meaning


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (5, 40)])
def test_float8_in_blocks_is_what_its_formula_says(size, tmp_path):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    numbers, scales, meaning = packed(weight, (8, 8))
    source = open_model(
        write(
            tmp_path / "fp8",
            {f"{NAME}.weight": numbers, f"{NAME}.weight_scale_inv": scales},
            quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]},
        )
    )
    assert source.packed == "float8 in blocks"
    (view,) = base_matrices(source).matrices[f"{NAME}.weight"]
    read = view.load()
    # One product of two float32 numbers, one of them exact in eight bits.
    assert torch.allclose(read.double(), meaning, rtol=torch.finfo(torch.float32).eps, atol=0)
    for first, count in ((0, 3), (3, 2), (4, 1)):  # slices that begin inside a block, and end inside another
        assert torch.equal(view.tensor.read_leading(first, count), read[first : first + count])
    assert {entry.tensor: entry.gap for entry in base_matrices(source).skipped} == {
        f"{NAME}.weight_scale_inv": False
    }


def test_the_usual_block_needs_no_config(tmp_path):
    weight = torch.randn(130, 140, generator=torch.Generator().manual_seed(1))
    numbers, scales, meaning = packed(weight, (128, 128))
    folder = write(tmp_path / "fp8", {f"{NAME}.weight": numbers, f"{NAME}.weight_scale_inv": scales})
    (view,) = base_matrices(open_model(folder)).matrices[f"{NAME}.weight"]
    assert torch.allclose(view.load().double(), meaning, rtol=torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize(
    ("scales", "config"),
    [
        (torch.ones(3, 3), {"quant_method": "fp8", "weight_block_size": [8, 8]}),
        (torch.ones(2, 3), {"quant_method": "fp8", "weight_block_size": [8]}),
        (torch.ones(2, 3), {"quant_method": "another"}),
        (torch.ones(2, 3, dtype=torch.int32), {"quant_method": "fp8", "weight_block_size": [8, 8]}),
        (None, {"quant_method": "fp8", "weight_block_size": [8, 8]}),
    ],
)
def test_what_does_not_fit_the_format_stays_a_gap(scales, config, tmp_path):
    tensors = {f"{NAME}.weight": torch.zeros(16, 24).to(torch.float8_e4m3fn)}
    if scales is not None:
        tensors[f"{NAME}.weight_scale_inv"] = scales
    source = open_model(write(tmp_path / "fp8", tensors, quantization_config=config))
    assert source.packed is None
    assert source.unreadable is not None
    assert base_matrices(source).gaps == {f"{NAME}.weight"}


def test_a_scan_of_packed_weights(tmp_path):
    """Both sides packed: the update is that of the numbers; one side alone: a warning that it is not."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(24, 16, generator=generator)
    spike = 9.0 * torch.outer(torch.eye(24)[4], torch.eye(16)[7])
    folders, meanings = {}, {}
    for name, weight in (("base", base), ("tuned", base + spike)):
        numbers, scales, meanings[name] = packed(weight, (8, 8), 0.1)
        folders[name] = write(
            tmp_path / name,
            {f"{NAME}.weight": numbers, f"{NAME}.weight_scale_inv": scales},
            quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]},
        )
    report = scan(folders["base"], folders["tuned"], options=INLINE)
    (matrix,) = report.matrices
    expected = float((meanings["tuned"] - meanings["base"]).norm())
    assert matrix.update.frobenius_norm == pytest.approx(expected, rel=1e-5)
    assert [f.code for f in report.findings] == ["dequantised", "dequantised"]
    plain = write(tmp_path / "plain", {f"{NAME}.weight": base + spike})
    mixed = scan(folders["base"], plain, options=INLINE)
    assert "quantisation-error" in [f.code for f in mixed.findings]


def test_a_packed_checkpoint_is_not_written(tmp_path):
    from intruscope.writing.checkpoint import check_copyable

    numbers, scales, _ = packed(torch.randn(16, 24), (8, 8))
    folder = write(
        tmp_path / "fp8",
        {f"{NAME}.weight": numbers, f"{NAME}.weight_scale_inv": scales},
        quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]},
    )
    with pytest.raises(UnsupportedFormat, match="read but not written"):
        check_copyable(open_model(folder))


@dataclass(frozen=True, kw_only=True)
class _Halved(StoredTensor):
    """A toy format: integers that are twice the weight."""

    packed: StoredTensor

    def read_leading(self, first, count):
        return self.packed.read_leading(first, count).float() / 2

    def raw(self):
        yield bytearray(self.read().numpy().tobytes())


def test_a_format_is_one_module_and_one_line(tmp_path, monkeypatch):
    """What a newcomer writes: a module with ``unpacked``, and its name in the registry."""
    toy = ModuleType("intruscope.weights.formats.toy")

    def unpacked(config, tensors):
        if config.get("quantization_config", {}).get("quant_method") != "halves":
            return None
        found = {
            name: _Halved(name=name, path=t.path, dtype="F32", shape=t.shape, packed=t)
            for name, t in tensors.items()
            if t.dtype == "I32"
        }
        return number_formats.Unpacked({**tensors, **found}, frozenset(), "halves")

    toy.unpacked = unpacked
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    monkeypatch.setattr(number_formats, "_MODULES", (*number_formats._MODULES, "toy"))
    twice = torch.randint(-9, 9, (12, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    moved = twice.clone()
    moved[2, 3] += 8
    config = {"quantization_config": {"quant_method": "halves"}}
    base = write(tmp_path / "base", {f"{NAME}.weight": twice}, **config)
    tuned = write(tmp_path / "tuned", {f"{NAME}.weight": moved}, **config)
    (matrix,) = scan(base, tuned, options=INLINE).matrices
    assert matrix.update.frobenius_norm == pytest.approx(4.0)
