"""What is read and cannot be repaired or written: refused by name, or written in another form."""

import json
import shutil

import pytest
import torch
from repair_models import CONFIG, INLINE, RANK, bases, digests, factors, plan_of, raw, write_adapter
from safetensors.torch import load_file, save_file

from intruscope.errors import IntruscopeError, MalformedInput, UnsupportedFormat
from intruscope.repair.plan import repair


def test_a_matrix_that_is_not_finite_stops_the_repair(models, tmp_path):
    adapter = factors()
    adapter["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][0, 0] = float("nan")
    folder = write_adapter(tmp_path / "adapter", adapter)
    with pytest.raises(MalformedInput, match="NaN or infinite"):
        repair(str(models / "base"), str(folder), strength=0.5, options=INLINE)


def test_a_quantised_base_is_refused_by_name(models, tmp_path):
    shutil.copytree(models / "base", tmp_path / "base")
    config = {**json.loads(CONFIG), "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    for tuned in ("adapter", "merged"):
        with pytest.raises(UnsupportedFormat, match="awq"):
            repair(str(tmp_path / "base"), str(models / tuned), strength=0.5, options=INLINE)


def test_formats_that_cannot_hold_an_edit_become_a_lora_or_a_checkpoint(models, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    adapter = factors()
    loralib = {
        f"{name}.lora_A": adapter[f"base_model.model.{name}.lora_A.weight"],
        f"{name}.lora_B": adapter[f"base_model.model.{name}.lora_B.weight"],
    }
    (tmp_path / "loralib").mkdir()
    save_file(loralib, tmp_path / "loralib" / "adapter_model.safetensors")
    options = {"strength": 0.5, "options": INLINE, "lora_alpha": 6.0}
    arguments = (str(models / "base"), str(tmp_path / "loralib"))
    plan = repair(*arguments, **options)
    assert "written-as-lora" in {finding.code for finding in plan.findings}
    plan.apply(tmp_path / "lora")
    plan_of(models).apply(tmp_path / "twin")
    lora, twin = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("lora", "twin"))
    key = f"base_model.model.{name}.lora_"
    assert lora[f"{key}A.weight"].shape == (RANK + 1, 48)
    torch.testing.assert_close(
        lora[f"{key}B.weight"] @ lora[f"{key}A.weight"], twin[f"{key}B.weight"] @ twin[f"{key}A.weight"]
    )
    repair(*arguments, **options, merged=True).apply(tmp_path / "merged")
    got = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    plan_of(models, merged=True).apply(tmp_path / "peft")
    torch.testing.assert_close(got, load_file(tmp_path / "peft" / "model.safetensors")[f"{name}.weight"])


def test_a_checkpoint_of_pickles_is_not_written(models, tmp_path):
    torch.save(load_file(models / "merged" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedFormat, match="pickles"):
        repair(
            str(models / "base"),
            str(tmp_path / "pytorch_model.bin"),
            strength=0.5,
            options=INLINE,
            allow_pickle=True,
        )


def test_the_old_format_of_fused_parts_becomes_a_lora_or_a_checkpoint(models, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 48, generator=generator), torch.randn(32, 2, 1, generator=generator)
    key = f"base_model.model.{name}"
    old = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    folder = write_adapter(tmp_path / "old", old, r=2, lora_alpha=6, enable_lora=[True, False, True])
    arguments = (str(models / "base"), str(folder))
    repair(*arguments, strength=0.5, which=f"{name}:0", options=INLINE).apply(tmp_path / "lora")
    repair(*arguments, strength=0.5, which=f"{name}:0", options=INLINE, merged=True).apply(tmp_path / "out")
    tuned = bases()[f"{name}.weight"].double()
    for part, group in ((0, 0), (2, 1)):
        rows, ranks = slice(16 * part, 16 * part + 16), slice(2 * group, 2 * group + 2)
        factor = up[16 * group : 16 * group + 16, :, 0].double()
        tuned[rows] += 3.0 * factor @ down[ranks].double()
    left, values, right_t = torch.linalg.svd(tuned)
    expected = tuned - 0.5 * values[0] * torch.outer(left[:, 0], right_t[0])
    got = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"].double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    got = bases()[f"{name}.weight"].double() + (
        lora[f"{key}.lora_B.weight"].double() @ lora[f"{key}.lora_A.weight"].double()
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 5  # two parts of rank two, and the edit
    assert not config.get("enable_lora")


def test_a_pickled_adapter_is_written_as_safetensors(models, tmp_path):
    (tmp_path / "adapter").mkdir()
    torch.save(factors(), tmp_path / "adapter" / "adapter_model.bin")
    shutil.copy(models / "adapter" / "adapter_config.json", tmp_path / "adapter")
    options = {"strength": 0.5, "options": INLINE, "allow_pickle": True}
    repair(str(models / "base"), str(tmp_path / "adapter"), **options).apply(tmp_path / "out")
    plan_of(models).apply(tmp_path / "twin")
    names = ("out", "twin")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in names)
    assert set(one) == set(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not (tmp_path / "out" / "adapter_model.bin").exists()
    copied = repair(str(models / "base"), str(tmp_path / "adapter"), **{**options, "strength": 1.0})
    copied.apply(tmp_path / "copy")
    assert (
        digests(tmp_path / "copy")["adapter_model.bin"] == digests(tmp_path / "adapter")["adapter_model.bin"]
    )


def test_what_a_checkpoint_has_no_place_for_is_refused_by_name(models, tmp_path):
    extra = {"base_model.model.classifier.weight": torch.randn(3, 48)}
    folder = write_adapter(tmp_path / "headed", {**factors(), **extra}, modules_to_save=["classifier"])
    with pytest.raises(UnsupportedFormat, match="classifier.*without --merged"):
        repair(str(models / "base"), str(folder), strength=0.5, options=INLINE, merged=True)
    repair(str(models / "base"), str(folder), strength=0.5, options=INLINE).apply(tmp_path / "out")
    kept = raw(tmp_path / "out" / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert kept == raw(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    grown = {
        "base_model.model.model.embed_tokens.weight": torch.randn(44, 48),
        **factors(),
    }
    folder = write_adapter(tmp_path / "grown", grown, modules_to_save=["embed_tokens"])
    with pytest.raises(UnsupportedFormat, match="resized vocabulary"):
        repair(str(models / "base"), str(folder), strength=0.5, options=INLINE, merged=True)


def test_every_refusal_says_what_to_do(models):
    with pytest.raises(IntruscopeError) as caught:
        plan_of(models, which="nothing.like.this")
    assert caught.value.remedy.startswith("did you mean")
