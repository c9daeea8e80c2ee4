"""What PEFT loads is the base with the closest update of that rank, in models of every kind."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from extract_models import (
    INLINE,
    TEXT,
    layers,
    logits,
    moved,
    peft_models,
    relative,
    truncated,
    truncated_model,
    update,
)
from peft import LoHaConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from intruscope.extract import extract

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
RANK = 4


@pytest.mark.parametrize("name", ["bert", "gpt2", "tied", "phi3", "neox"])
def test_logits_are_those_of_the_base_with_the_truncated_update(name, pairs, tmp_path):
    pair = pairs(name)
    plan = pair.plan(rank=RANK)
    plan.apply(tmp_path / "out")
    loaded = pair.loaded(tmp_path / "out")
    expected = truncated_model(pair.base, pair.tuned, RANK)
    assert relative(logits(loaded), logits(expected), logits(pair.base)) < 1e-5
    assert {module.module for module in plan.modules} == set(layers(pair.base))
    merged = layers(loaded.merge_and_unload())
    for described in plan.matrices:
        before = layers(pair.base)[described.module]
        change = update(before, layers(pair.tuned)[described.module])
        norm = np.linalg.norm(change)
        best = np.linalg.norm(change - truncated(change, RANK)) / norm
        got = np.linalg.norm(change - update(before, merged[described.module])) / norm
        assert described.optimal_error == pytest.approx(best, rel=1e-9)
        assert described.relative_error == pytest.approx(got, rel=1e-5)
        assert described.relative_error == pytest.approx(best, rel=1e-5)
        rest = np.linalg.norm(change - truncated(change, RANK), 2)
        assert described.spectral_low <= rest * (1 + 1e-12)
        assert described.spectral_low == pytest.approx(rest, rel=1e-9)
        assert rest <= described.spectral_high <= rest * (1 + 1e-4)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == RANK
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert config["fan_in_fan_out"] == (name == "gpt2")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
@pytest.mark.parametrize("name", ["bert", "gpt2", "tied", "neox", "bloom"])
def test_enough_rank_with_the_rest_saved_is_the_tuned_model(name, pairs, tmp_path):
    pair = pairs(name)
    plan = pair.plan(rank=16, save_rest=True)
    plan.apply(tmp_path / "out")
    loaded = pair.loaded(tmp_path / "out")
    assert relative(logits(loaded), logits(pair.tuned), logits(pair.base)) < 1e-5
    assert plan.totals.relative_error_with_rest < 1e-6
    assert plan.rest
    assert all(rest.status == "saved" for rest in plan.rest)
    assert relative(logits(loaded.merge_and_unload()), logits(pair.tuned), logits(pair.base)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_embeddings_and_heads_on_request(name, pairs, tmp_path):
    pair = pairs(name)
    plan = pair.plan(rank=16, which="all", save_rest=True)
    kinds = {module.module: module.kind for module in plan.modules}
    if name == "llama":
        assert kinds["model.embed_tokens"] == "embedding"
        assert kinds["lm_head"] == "linear"
    else:  # the table of words is the head too: factors on both would be merged into it twice
        assert kinds["transformer.wpe"] == "embedding"
        assert "transformer.wte" not in kinds
        assert any("tied to lm_head" in rest.reason for rest in plan.rest)
    plan.apply(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings")
        loaded = pair.loaded(tmp_path / "out")
    assert relative(logits(loaded), logits(pair.tuned), logits(pair.base)) < 1e-5


def test_experts_are_lost_by_name_and_everything_else_is_there(pairs, tmp_path):
    pair = pairs("mixtral")
    plan = pair.plan(rank=16, save_rest=True)
    assert {module.module.rpartition(".")[0][-9:] for module in plan.modules} == {"self_attn"}
    lost = {rest.name for rest in plan.rest if rest.status == "lost"}
    assert len(lost) == 2 * 3 * 3  # two layers of three experts of three matrices
    assert all(".experts." in name for name in lost)
    assert plan.totals.relative_error < 1e-6 < plan.totals.relative_error_with_rest
    plan.apply(tmp_path / "out")
    merged = dict(pair.loaded(tmp_path / "out").merge_and_unload().named_parameters())
    before, after = (dict(model.named_parameters()) for model in (pair.base, pair.tuned))
    for name, parameter in merged.items():
        expected = before if ".experts." in name else after
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_convolutions_on_request(tmp_path):
    base, tuned = moved(peft_models.resnet, size=0.1)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    names = str(tmp_path / "base"), str(tmp_path / "tuned")
    plan = extract(*names, rank=2, which="*convolution", options=INLINE)
    plan.apply(tmp_path / "out")
    loaded = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "out")
    merged = dict(loaded.merge_and_unload().named_parameters())
    before, after = (dict(model.named_parameters()) for model in (base, tuned))
    assert len(plan.modules) >= 5
    for module in plan.modules:
        weight = f"{module.module}.weight"
        change = (after[weight] - before[weight]).detach().double().flatten(1).numpy()
        got = (merged[weight] - before[weight]).detach().double().flatten(1).numpy()
        np.testing.assert_allclose(got, truncated(change, 2), atol=1e-6)


def test_ranks_of_their_own_load_as_patterns(pairs, tmp_path):
    pair = pairs("llama")
    plan = pair.plan(energy=0.7, compact=True)
    ranks = {matrix.module: matrix.rank for matrix in plan.matrices}
    assert len(set(ranks.values())) > 1
    plan.apply(tmp_path / "compact")
    loaded = pair.loaded(tmp_path / "compact")
    for name, rank in ranks.items():
        layer = loaded.get_submodule(f"base_model.model.{name}")
        assert layer.r == {"default": rank}
        assert layer.scaling == {"default": 1.0}
    padded = pair.plan(energy=0.7)
    padded.apply(tmp_path / "padded")
    assert padded.stored_rank == max(ranks.values())
    filled = pair.loaded(tmp_path / "padded")
    torch.testing.assert_close(logits(loaded), logits(filled), rtol=1e-6, atol=1e-7)
    for matrix in plan.matrices:  # the smallest that suffices
        change = update(layers(pair.base)[matrix.module], layers(pair.tuned)[matrix.module])
        kept = np.linalg.svd(change, compute_uv=False) ** 2
        shares = kept.cumsum() / kept.sum()
        assert matrix.rank == int(np.argmax(shares >= 0.7)) + 1
        assert matrix.energy >= 0.7 - 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_narrow_factors_state_the_error_that_they_have(dtype, tolerance, pairs, tmp_path):
    pair = pairs("llama")
    plan = pair.plan(rank=16, dtype=dtype)
    plan.apply(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    for matrix in plan.matrices:
        up = stored[f"base_model.model.{matrix.module}.lora_B.weight"].double().numpy()
        down = stored[f"base_model.model.{matrix.module}.lora_A.weight"].double().numpy()
        change = update(layers(pair.base)[matrix.module], layers(pair.tuned)[matrix.module])
        error = change - up @ down
        assert matrix.optimal_error < 1e-12
        assert matrix.relative_error == pytest.approx(
            np.linalg.norm(error) / np.linalg.norm(change), rel=1e-6
        )
        assert 1e-5 < matrix.relative_error < tolerance
        assert np.linalg.norm(error, 2) <= matrix.spectral_high


def test_an_adapter_of_plain_lora_keeps_its_rank_and_says_so(tmp_path):
    base, _ = moved(peft_models.llama)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        type(base).from_pretrained(tmp_path / "base"),
        LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
    )
    peft_models.train(model)
    model.save_pretrained(tmp_path / "lora")
    plan = extract(str(tmp_path / "base"), str(tmp_path / "lora"), rank=8, options=INLINE)
    assert plan.stored_rank == 3
    assert "own-rank" in {finding.code for finding in plan.findings}
    assert all(matrix.relative_error < 1e-6 for matrix in plan.matrices)
    plan.apply(tmp_path / "out")
    again = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert relative(logits(again), logits(model), logits(base)) < 1e-5
    cut = extract(str(tmp_path / "base"), str(tmp_path / "lora"), rank=2, options=INLINE)
    assert cut.stored_rank == 2
    assert all(0.0 < matrix.relative_error < 1.0 for matrix in cut.matrices)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_what_an_adapter_saved_whole_goes_along(bias, pairs, tmp_path):
    """A classifier's adapter, cut to a lower rank: its head, and biases that were trained."""
    pair = pairs("bert")
    config = LoraConfig(r=5, lora_alpha=5, target_modules=["query", "value"], bias=bias, task_type="SEQ_CLS")
    model = get_peft_model(type(pair.base).from_pretrained(pair.folder / "base"), config)
    peft_models.train(model)
    model.save_pretrained(tmp_path / "lora")
    plan = extract(pair.names[0], str(tmp_path / "lora"), rank=5, save_rest=True, options=INLINE)
    assert "classifier" in plan.saved.modules
    assert plan.saved.biases == (bias == "all")
    plan.apply(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    again = pair.loaded(tmp_path / "out")
    assert relative(logits(again), logits(model), logits(pair.base)) < 1e-5
    cut = extract(pair.names[0], str(tmp_path / "lora"), rank=2, save_rest=True, options=INLINE)
    assert 0.0 < cut.totals.relative_error < 1.0
    assert {rest.status for rest in cut.rest} == {"saved"}


@pytest.mark.parametrize(
    "config",
    [
        OFTConfig(target_modules=["q_proj", "up_proj"], oft_block_size=4, task_type="CAUSAL_LM"),
        LoHaConfig(target_modules=["q_proj", "up_proj"], r=2, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["q_proj", "up_proj"], r=2, use_dora=True, task_type="CAUSAL_LM"),
    ],
    ids=["oft", "loha", "dora"],
)
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_other_kinds_become_lora(config, tmp_path):
    base, _ = moved(peft_models.llama)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(type(base).from_pretrained(tmp_path / "base"), config)
    peft_models.train(model)
    model.save_pretrained(tmp_path / "other")
    plan = extract(str(tmp_path / "base"), str(tmp_path / "other"), rank=16, options=INLINE)
    assert {m.module.rpartition(".")[2] for m in plan.modules} == {"q_proj", "up_proj"}
    plan.apply(tmp_path / "out")
    again = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert relative(logits(again), logits(model), logits(base)) < 1e-4


def test_nothing_that_peft_or_transformers_prints_gets_out(pairs, tmp_path, capfd):
    pair = pairs("llama")
    config = LoHaConfig(target_modules=["q_proj", "up_proj"], r=2, task_type="CAUSAL_LM")
    model = get_peft_model(type(pair.base).from_pretrained(pair.folder / "base"), config)
    peft_models.train(model)
    model.save_pretrained(tmp_path / "loha")
    capfd.readouterr()
    plan = extract(pair.names[0], str(tmp_path / "loha"), rank=4, options=INLINE)  # warnings are errors
    assert plan.totals.relative_error < 1e-6  # the product of two rank-2 factors has rank 4
    assert capfd.readouterr() == ("", "")


def test_names_are_those_in_memory_not_those_in_files(pairs, tmp_path):
    """GPT-2 on the hub is stored without its prefix; an adapter named so would be loaded and do nothing."""
    pair = pairs("gpt2")
    for name in ("base", "tuned"):
        shutil.copytree(pair.folder / name, tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors")
        bare = {key.removeprefix("transformer."): tensor for key, tensor in stored.items()}
        save_file(bare, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    plan = extract(str(tmp_path / "base"), str(tmp_path / "tuned"), rank=RANK, options=INLINE)
    assert all(module.module == f"transformer.{module.name}" for module in plan.modules)
    plan.apply(tmp_path / "out")
    expected = truncated_model(pair.base, pair.tuned, RANK)
    found = logits(pair.loaded(tmp_path / "out"))
    assert relative(found, logits(expected), logits(pair.base)) < 1e-5


@pytest.mark.filterwarnings("ignore:Some weights of:UserWarning")
def test_a_new_head_goes_along(pairs, tmp_path):
    """A language model as the base of a classifier: the head exists on one side alone."""
    import transformers

    pair = pairs("bert")
    torch.manual_seed(1)
    masked = transformers.BertForMaskedLM(pair.base.config)
    masked.bert.load_state_dict(pair.base.bert.state_dict(), strict=False)
    masked.save_pretrained(tmp_path / "base")
    plan = extract(str(tmp_path / "base"), pair.names[1], rank=16, save_rest=True, options=INLINE)
    assert {"classifier", "bert.pooler.dense"} <= set(plan.saved.modules)
    plan.apply(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    host = type(pair.base).from_pretrained(tmp_path / "base")
    found = logits(PeftModel.from_pretrained(host, tmp_path / "out"))
    torch.testing.assert_close(found, logits(pair.tuned), rtol=1e-5, atol=1e-6)
    without = extract(str(tmp_path / "base"), pair.names[1], rank=4, options=INLINE)
    without.apply(tmp_path / "bare")  # PEFT's class for classifiers would look for the head
    assert json.loads((tmp_path / "bare" / "adapter_config.json").read_text())["task_type"] is None
    assert PeftModel.from_pretrained(type(pair.base).from_pretrained(tmp_path / "base"), tmp_path / "bare")


def test_the_text_is_one_that_the_models_tell_apart(pairs):
    """Else equal logits would mean nothing."""
    pair = pairs("llama")
    assert float((logits(pair.base) - logits(pair.tuned)).norm()) > 0.1
    assert TEXT.unique().numel() == TEXT.numel()
