"""Every way of adapting a model that is read: what PEFT merges is applied, and its base is not."""

import json

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model
from verify_models import INLINE, KINDS, LINEAR, away_from_zero, peft_models, trained

from intruscope.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OTHER_KINDS = {
    "loha": LoHaConfig(r=2, alpha=3, target_modules=["q_proj", "up_proj"]),
    "lokr": LoKrConfig(r=2, alpha=3, target_modules=["q_proj", "up_proj"]),
    "oft": OFTConfig(oft_block_size=4, target_modules=["q_proj", "up_proj"]),
    "vera": VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
}


def check(model, folder, *, safe):
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload(safe_merge=safe).save_pretrained(folder / "merged")
    base, adapter, merged = (str(folder / name) for name in ("base", "adapter", "merged"))
    report = verify(base, adapter, merged, options=INLINE)
    wrong = [module for module in report.modules if module.status != "applied"]
    assert report.verdict == "applied", wrong
    assert not report.others
    assert report.modules
    untouched = verify(base, adapter, base, options=INLINE)
    assert {module.status for module in untouched.modules} == {"not applied"}
    assert untouched.verdict == "not applied"
    assert untouched.equals_base


@pytest.mark.parametrize("case", peft_models.CASES)
def test_what_peft_merges_is_applied(case, tmp_path):
    make, options = peft_models.CASES[case]
    number = list(peft_models.CASES).index(case)
    torch.manual_seed(0)
    model = make().to(DTYPES[number % 3])
    model.save_pretrained(tmp_path / "base")
    model = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}))
    peft_models.train(model)
    check(model, tmp_path, safe=number % 2 == 0)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_so_is_an_update_that_is_no_pair_of_factors(kind, tmp_path):
    torch.manual_seed(0)
    model = peft_models.llama()
    model.save_pretrained(tmp_path / "base")
    model = get_peft_model(model, OTHER_KINDS[kind])
    peft_models.train(model)
    check(model, tmp_path, safe=True)


def test_a_head_that_the_base_does_not_have(tmp_path):
    torch.manual_seed(0)
    from transformers import BertForSequenceClassification, BertModel

    body = peft_models.bert().bert
    body.save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    assert isinstance(model.bert, BertModel)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    peft_models.train(model)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    names = [str(tmp_path / name) for name in ("base", "adapter", "merged")]
    report = verify(*names, options=INLINE)
    statuses = {module.name: module.status for module in report.modules}
    assert statuses["classifier"] == statuses["classifier.bias"] == "applied"
    assert (report.verdict, report.has_failed, report.is_open) == ("applied", False, False)
    merged.classifier.weight.data += 1
    merged.save_pretrained(tmp_path / "merged")
    report = verify(*names, options=INLINE)
    assert {module.name for module in report.modules if module.status != "applied"} == {"classifier"}


def test_models_in_memory_and_mappings_of_tensors(tmp_path):
    torch.manual_seed(0)
    base = peft_models.llama()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = trained(peft_models.llama(), LINEAR, 0.1, seed=1)
    adapted = ("q_proj", "k_proj", "up_proj")
    inner = {
        name.replace(".weight", ".base_layer.weight" if name.split(".")[-2] in adapted else ".weight"): tensor
        for name, tensor in state.items()
    }
    model.get_base_model().load_state_dict(inner, strict=False)
    model.save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    report = verify(state, tmp_path / "adapter", merged, options=INLINE)
    assert report.verdict == "applied"
    assert verify(state, model, merged.state_dict(), options=INLINE).verdict == "applied"
    base.load_state_dict(state)  # PEFT merged into it
    assert verify(base, tmp_path / "adapter", state).verdict == "not applied"


def test_a_merge_that_no_recipe_knows_is_left_open_below_the_rounding(tmp_path):
    """Stochastic rounding of an update that bfloat16 hides: neither confirmed nor called wrong."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    make, options = KINDS["llama"]
    model = make()
    away_from_zero(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    trained(model, options, 3e-5, seed=1).save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in factors:
            change = 7 / 3 * factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
            step = torch.exp2(torch.floor(torch.log2(tensor.float().abs())) - 7)
            up = torch.rand(change.shape, generator=generator) < change.abs() / step
            tensors[name] = (tensor.float() + up * step * change.sign()).to(tensor.dtype)
    (tmp_path / "merged").mkdir()
    save_file(tensors, tmp_path / "merged" / "model.safetensors")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config))
    report = verify(*(str(tmp_path / name) for name in ("base", "adapter", "merged")), options=INLINE)
    assert report.verdict == "open"
    assert all("no known way to merge" in module.reason for module in report.modules)
