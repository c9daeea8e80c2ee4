"""Models in memory: five lines from a transformers model and a PeftModel to a scan and a repaired adapter."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model

import intruscope
from intruscope import RunOptions
from intruscope.repair import repair

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

pytestmark = pytest.mark.filterwarnings("ignore")
INLINE = RunOptions(workers=0)
NAME = "model.layers.0.mlp.up_proj"


def adapted(name="default"):
    torch.manual_seed(0)
    model = peft_models.llama()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["up_proj", "q_proj"])
    model = get_peft_model(model, config, adapter_name=name)
    peft_models.train(model)
    return before, model


def weight(model, adapter):
    layer = model.get_submodule(f"base_model.model.{NAME}")
    return layer.base_layer.weight.double() + layer.get_delta_weight(adapter).double()


@pytest.mark.parametrize("adapter", ["default", "other"])
def test_from_memory_to_a_scan_and_a_repaired_adapter(tmp_path, adapter):
    before, model = adapted(adapter)
    report = intruscope.scan(model.get_base_model(), model)
    plan = repair(model.get_base_model(), model, strength=0.2, which=f"{NAME}:0")
    plan.apply(tmp_path / "repaired")
    assert {matrix.update.rank_bound for matrix in report.matrices} == {3}
    tokens = torch.tensor([[1, 5, 9]])
    logits = model(tokens).logits
    model.load_adapter(str(tmp_path / "repaired"), "repaired")
    left, values, right_t = torch.linalg.svd(weight(model, adapter), full_matrices=False)
    expected = weight(model, adapter) - 0.8 * values[0] * torch.outer(left[:, 0], right_t[0])
    torch.testing.assert_close(weight(model, "repaired"), expected, rtol=0, atol=1e-5)
    model.set_adapter("repaired")
    assert float((model(tokens).logits - logits).abs().max()) > 1e-4
    model.set_adapter(adapter)
    assert torch.equal(model(tokens).logits, logits)  # what was given is as it was
    model.delete_adapter("repaired")
    plain = model.unload().state_dict()
    assert all(torch.equal(plain[key], tensor) for key, tensor in before.items())


def test_a_whole_model_and_a_base_by_name(tmp_path):
    before, model = adapted()
    plain = peft_models.llama()
    plain.load_state_dict(before)
    plain.save_pretrained(tmp_path / "base")
    merged = model.merge_and_unload()
    plan = repair(tmp_path / "base", merged, strength=0.0, which=f"{NAME}:0", options=INLINE)
    plan.apply(tmp_path / "repaired")
    repaired = peft_models.llama().from_pretrained(tmp_path / "repaired")
    values = torch.linalg.svdvals(merged.get_submodule(NAME).weight.double())
    after = torch.linalg.svdvals(repaired.get_submodule(NAME).weight.double())
    torch.testing.assert_close(after[:-1], values[1:], rtol=1e-5, atol=1e-5)


def test_another_kind_in_memory_becomes_a_lora_or_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    base = peft_models.llama().eval()
    base.save_pretrained(tmp_path / "base")
    config = LoHaConfig(r=2, alpha=30, target_modules=["up_proj"], init_weights=False)
    model = get_peft_model(base, config).eval()
    tokens = torch.tensor([[1, 5, 9]])
    whole = model(tokens).logits
    logits = {}
    for strength in (1.0, 0.5):
        for merged in (False, True):
            plan = repair(model, strength=strength, which=f"{NAME}:0", merged=merged)
            out = plan.apply(tmp_path / f"{strength}-{merged}")
            plain = type(base).from_pretrained(out if merged else tmp_path / "base")
            again = plain if merged else PeftModel.from_pretrained(plain, out)
            logits[strength, merged] = again.eval()(tokens).logits
    # Strength 1 edits nothing: what is written is what the model in memory computes.
    assert float((logits[1.0, True] - whole).abs().max()) < 1e-5
    assert float((logits[1.0, False] - whole).abs().max()) < 1e-5
    assert float((logits[0.5, True] - whole).abs().max()) > 1e-3
    assert float((logits[0.5, True] - logits[0.5, False]).abs().max()) < 1e-5
    assert json.loads((tmp_path / "1.0-False" / "adapter_config.json").read_text())["peft_type"] == "LOHA"
    assert json.loads((tmp_path / "0.5-False" / "adapter_config.json").read_text())["peft_type"] == "LORA"
