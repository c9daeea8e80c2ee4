"""Models in memory: figured as their saved forms are, without a file, and left as they are."""

from __future__ import annotations

import copy
import os
import sys

import numpy as np
import peft
import peft_models
import pytest
import torch
from torch import nn

import intruscope
from intruscope import RunOptions, ScanSettings, scan
from intruscope.adapters.opening import open_pair
from intruscope.errors import IntruscopeError, ShapeMismatch, UnsupportedFormat, UsageError

pytestmark = pytest.mark.filterwarnings("ignore")
INLINE = RunOptions(workers=0)


def adapted(make=peft_models.llama, **options):
    torch.manual_seed(0)
    base = make().eval()
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], **options})
    model = peft.get_peft_model(copy.deepcopy(base), config)
    peft_models.train(model)
    return base, model.eval()


def agree(report, saved):
    """Whether two reports of the same weights say the same; bounds may differ by rounding."""
    first, second = (sorted(each.matrices, key=lambda matrix: matrix.name) for each in (report, saved))
    assert [m.name for m in first] == [m.name for m in second]
    for one, other in zip(first, second, strict=True):
        assert (one.shape, one.kind, one.layer, one.scope) == (
            other.shape,
            other.kind,
            other.layer,
            other.scope,
        )
        assert one.singular_values == pytest.approx(other.singular_values, rel=1e-6)
        for side, twin in zip(one.sides, other.sides, strict=True):
            assert (side.verdicts, side.certificates) == (twin.verdicts, twin.certificates)
            assert side.alignment_lower == pytest.approx(twin.alignment_lower, abs=1e-5)
            assert (side.num_intruders, side.grid) == (twin.num_intruders, twin.grid)
        assert one.update.frobenius_norm == pytest.approx(other.update.frobenius_norm, rel=1e-6)
        assert [f.code for f in one.findings] == [f.code for f in other.findings]
    return True


_WATCHED: list[str] | None = None


def _watch(event, arguments):
    if event == "open" and _WATCHED is not None:
        path, _, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _WATCHED.append(str(path))


sys.addaudithook(_watch)


@pytest.fixture
def written():
    """Paths that are opened for writing from here on."""
    global _WATCHED
    _WATCHED = []
    yield _WATCHED
    _WATCHED = None


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (peft_models.llama, {}),
        (peft_models.llama, {"use_dora": True}),
        (peft_models.llama, {"target_modules": ["embed_tokens", "q_proj"]}),
        (peft_models.llama, {"modules_to_save": ["lm_head"]}),
        (peft_models.tied_llama, {}),
        (peft_models.gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (peft_models.phi3, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        (peft_models.resnet, {"target_modules": ["convolution"]}),
    ],
)
def test_a_peft_model_scans_as_its_saved_form_does(make, options, tmp_path, written):
    base, model = adapted(make, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = scan(base, model)
    inside = scan(model.get_base_model(), model)
    alone = scan(model)
    assert written == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    saved = scan(tmp_path / "base", tmp_path / "adapter", options=INLINE)
    assert len(report.matrices) > 0
    assert agree(report, saved)
    assert agree(inside, saved)
    assert agree(alone, saved)
    assert report.complete == saved.complete
    # Words of an embedding that PEFT saves again beside its factors change nothing, and are not in memory's.
    assert {e.tensor for e in report.coverage} <= {e.tensor for e in saved.coverage}


def test_other_kinds_scan_in_memory(tmp_path):
    base, model = adapted()
    model = peft.get_peft_model(
        copy.deepcopy(base), peft.LoHaConfig(r=2, alpha=3, target_modules=["q_proj"], init_weights=False)
    )
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    saved = scan(tmp_path / "base", tmp_path / "adapter", options=INLINE)
    assert agree(scan(base, model), saved)
    assert agree(scan(tmp_path / "base", model), saved)
    assert agree(scan(base, tmp_path / "adapter"), saved)


def test_two_modules_scan_as_their_checkpoints_do(tmp_path, written):
    base, model = adapted()
    tuned = copy.deepcopy(model).merge_and_unload()
    report = scan(base, tuned)
    assert written == []
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    assert agree(report, scan(tmp_path / "base", tmp_path / "tuned", options=INLINE))


def test_mappings_of_tensors_and_arrays(written):
    generator = torch.Generator().manual_seed(0)
    base = {"layers.0.mlp.up_proj.weight": torch.randn(12, 8, generator=generator)}
    spike = 40.0 * torch.outer(torch.eye(12)[3], torch.eye(8)[5])
    tuned = {name: (weight + spike).numpy() for name, weight in base.items()}
    (matrix,) = scan(base, tuned, settings=ScanSettings(k=1)).matrices
    assert written == []
    # One dominant direction, e₃: an intruder only where no base vector is near it.
    left = torch.linalg.svd(base["layers.0.mlp.up_proj.weight"].double())[0]
    assert matrix.sides[0].num_intruders == int(left[3].abs().max() < 0.5)
    assert matrix.update.spectral_norm == pytest.approx(40.0, rel=1e-6)
    same = scan(base, {name: np.asarray(weight) for name, weight in base.items()})
    assert same.matrices[0].update.frobenius_norm == 0.0


def test_a_module_says_itself_which_way_its_matrix_lies(monkeypatch):
    """A config that claims nothing: the square Conv1D of GPT-2 is read as its forward pass uses it."""
    base, model = adapted(peft_models.gpt2, target_modules=["attn.c_proj"], fan_in_fan_out=True)
    for each in (base, model.get_base_model()):
        monkeypatch.setattr(each.config, "to_dict", dict)
    pairs = {pair.name: pair for pair in open_pair(base, model).pairing.pairs}
    name = "transformer.h.0.attn.c_proj"
    before, after = pairs[name].load_float64()
    layer = model.get_base_model().get_submodule(name)
    inputs = torch.eye(16)
    assert torch.allclose((layer.base_layer(inputs) - layer.base_layer.bias).T.double(), before, atol=1e-6)
    assert torch.allclose((layer(inputs) - layer.base_layer.bias).T.double(), after, atol=1e-5)


def test_tied_weights_are_one_matrix():
    base, model = adapted(peft_models.tied_llama)
    names = {entry.tensor for entry in open_pair(base, model).pairing.coverage if entry.origin == "base"}
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names


class TestRefused:
    def test_different_architectures(self):
        base, _ = adapted()
        with pytest.raises(IntruscopeError, match="no tensor name matches the base"):
            scan(base, peft_models.bert())

    def test_another_size(self):
        base, _ = adapted()
        other = copy.deepcopy(base)
        other.model.layers[0].mlp.up_proj = nn.Linear(16, 20, bias=False)
        with pytest.raises(ShapeMismatch):
            scan(base, other)

    def test_two_active_adapters(self):
        base, model = adapted()
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"]))
        model.base_model.set_adapter(["default", "second"])
        with pytest.raises(UsageError, match="2 active adapters") as caught:
            scan(base, model)
        assert "set_adapter" in caught.value.remedy

    def test_a_disabled_adapter(self):
        base, model = adapted()
        with model.disable_adapter(), pytest.raises(UsageError, match="disabled"):
            scan(base, model)
        scan(base, model)

    def test_a_merged_adapter(self):
        base, model = adapted()
        model.merge_adapter()
        with pytest.raises(UsageError, match="merged") as caught:
            scan(base, model)
        assert "unmerge_adapter" in caught.value.remedy

    def test_weights_that_are_nowhere(self):
        _, model = adapted()
        with torch.device("meta"):
            hollow = peft_models.llama()
        with pytest.raises(UnsupportedFormat, match="meta device"):
            scan(hollow, model)

    def test_a_base_that_is_a_peft_model(self):
        _, model = adapted()
        _, other = adapted()
        with pytest.raises(UsageError, match="the base is a PeftModel"):
            scan(model, other)

    @pytest.mark.parametrize("init", ["pissa", "olora"])
    def test_a_start_that_moved_the_base(self, init):
        _, model = adapted(init_lora_weights=init)
        with pytest.raises(IntruscopeError, match="initiali"):
            scan(model)

    def test_one_model_alone(self):
        base, _ = adapted()
        with pytest.raises(UsageError, match="only one model"):
            scan(base)

    def test_what_is_no_model(self):
        base, _ = adapted()
        with pytest.raises(UsageError, match="list"):
            scan(base, [1, 2])


def test_a_module_on_two_devices_is_read_where_it_lies(monkeypatch):
    """Each tensor is copied to the CPU by itself; here one says that it is elsewhere."""
    base, model = adapted()
    moved = []
    plain = torch.Tensor.to

    def to(self, *args, **kwargs):
        if args[:1] == ("cpu",):
            moved.append(tuple(self.shape))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    scan(base, model)
    assert (16, 16) in moved


def test_a_spread_of_names_is_exported():
    assert intruscope.scan is scan
