"""Every spelling, against what PEFT merges: base + update = merge_and_unload, on tiny real models."""

from __future__ import annotations

import json
import pickle

import peft_models
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UnsupportedFormat
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore")


def _tuned_by_peft(make, options, folder):
    """Save base and adapter; the merged model's folder is PEFT's own answer, in float32."""
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder / "base")
    model = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}))
    peft_models.train(model)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload(safe_merge=True).save_pretrained(folder / "merged")


def _tuned(pair):
    base = pair.base.load().double()
    update = pickle.loads(pickle.dumps(pair.update)).load(pair.base.load())
    if isinstance(update, DenseUpdate):
        return base, update.tuned_OI.double()
    assert update.left_OR.shape[1] == update.right_RI.shape[0]
    return base, base + update.left_OR.double() @ update.right_RI.double()


def _check_against_merged(folder):
    """Each pair is what PEFT merged, what PEFT left alone is in no pair, and the ledger is whole."""
    base, merged = open_model(folder / "base"), open_model(folder / "merged")
    pairing = pair_adapter(base, open_adapter(folder / "adapter"))
    assert pairing.complete, pairing.findings
    pairs = {pair.name: pair for pair in pairing.pairs}
    changed = set()
    for name, views in base_matrices(base).matrices.items():
        for view, twin in zip(views, base_matrices(merged).matrices[name], strict=True):
            before, expected = view.load().double(), twin.load().double()
            if torch.equal(before, expected):
                assert view.name not in pairs
                continue
            changed.add(view.name)
            got_base, got = _tuned(pairs[view.name])
            assert torch.equal(got_base, before)
            scale = torch.linalg.vector_norm(expected - before)
            assert torch.linalg.vector_norm(got - expected) <= 2e-6 * scale + 1e-6, view.name
            if before.shape[0] == before.shape[1]:
                assert torch.linalg.vector_norm((got - before).T - (expected - before)) > 0.1 * scale
    assert changed == set(pairs)
    assert changed
    named = [(entry.origin, entry.tensor) for entry in pairing.coverage]
    assert len(named) == len(set(named))
    assert {t for o, t in named if o == "adapter"} == set(open_adapter(folder / "adapter").tensors)
    assert {t for o, t in named if o == "base"} == set(base.tensors)
    return pairing


@pytest.mark.parametrize("case", peft_models.CASES)
def test_the_update_is_what_peft_merges(case, tmp_path):
    make, options = peft_models.CASES[case]
    _tuned_by_peft(make, options, tmp_path)
    _check_against_merged(tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_moved_its_base_is_refused_until_it_is_converted(init, tmp_path):
    torch.manual_seed(0)
    model = peft_models.llama()
    model.save_pretrained(tmp_path / "base")
    options = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": init}
    model = get_peft_model(model, LoraConfig(**options))
    model.peft_config["default"].init_lora_weights = True  # as PEFT's own guide does before saving the start
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = init
    peft_models.train(model)
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(UnsupportedFormat, match=init):
        open_adapter(tmp_path / "raw")
    model.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    model.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    _check_against_merged(tmp_path)


def test_a_grouped_convolution_is_refused_by_name(tmp_path):
    torch.manual_seed(0)
    model = peft_models.convnext()
    model.save_pretrained(tmp_path / "base")
    get_peft_model(model, LoraConfig(r=8, target_modules=["dwconv"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UnsupportedFormat, match="dwconv.* of a grouped convolution"):
        pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))


def test_eva_spreads_its_ranks_by_module(tmp_path):
    from peft import EvaConfig, initialize_lora_eva_weights

    torch.manual_seed(0)
    model = peft_models.llama()
    model.save_pretrained(tmp_path / "base")
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "eva"}
    model = get_peft_model(model, LoraConfig(**options, eva_config=EvaConfig(rho=3.0, tau=0.5)))
    batches = [{"input_ids": torch.randint(3, 40, (4, 12))} for _ in range(8)]
    initialize_lora_eva_weights(model, dataloader=batches, show_progress_bar=False)
    peft_models.train(model)
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    model.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    _check_against_merged(tmp_path)


_RESIZED = {
    "embedding": {"target_modules": ["embed_tokens"]},
    "embedding-dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["lm_head"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [41, 3, 44]},  # last: 45 words only
}


@pytest.mark.parametrize(("case", "size"), [*((c, 45) for c in _RESIZED), *((c, 33) for c in _RESIZED)][:-1])
def test_a_resized_vocabulary_is_compared_over_the_words_of_both(case, size, tmp_path):
    torch.manual_seed(0)
    model = peft_models.llama()
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(size)
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, **_RESIZED[case]))
    peft_models.train(model)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert pairing.complete
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    checked = 0
    for pair in pairing.pairs:
        _, got = _tuned(pair)
        expected = merged[f"{pair.name}.weight"].double()
        if pair.kind in ("embedding", "head"):
            expected = expected[: min(size, 40)]
            checked += 1
        expected = expected.T if pair.kind == "embedding" else expected
        if case == "tokens" and pair.kind == "embedding":
            expected = expected.clone()
            assert torch.equal(got[:, 3], expected[:, 3])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert checked == (2 if case == "saved" else 1)
    if case != "tokens":
        assert "resized" in {finding.code for finding in pairing.findings}


def test_experts_of_an_older_peft_call_the_other_axis_in(tmp_path):
    """Before PEFT swapped them, A went with the stored parameter's second axis, whatever that is."""
    torch.manual_seed(0)
    model = peft_models.mixtral()
    model.save_pretrained(tmp_path / "base")
    parameter = model.model.layers[1].mlp.experts.down_proj  # (experts, out, in)
    num_experts, first, second = parameter.shape
    assert first != second
    down, up = torch.randn(2 * num_experts, first), torch.randn(second, 2 * num_experts)
    key = "base_model.model.model.layers.1.mlp.experts"
    (tmp_path / "adapter").mkdir()
    save_file(
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_parameters": ["mlp.experts.down_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    # peft 0.17, ParamWrapper.get_delta_weight
    delta = torch.einsum(
        "o r e, e r i -> e i o", up.reshape(second, 2, num_experts), down.reshape(num_experts, 2, first)
    )
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert len(pairing.pairs) == num_experts
    for expert, pair in enumerate(pairing.pairs):
        assert f".{expert}." in pair.name
        update = pair.update.load(pair.base.load())
        torch.testing.assert_close(update.left_OR @ update.right_RI, 3 * delta[expert])


def test_further_adapters_lie_in_folders_of_their_name(tmp_path):
    torch.manual_seed(0)
    model = peft_models.llama()
    model.save_pretrained(tmp_path / "base")
    config = {"r": 3, "target_modules": ["q_proj"]}
    model = get_peft_model(model, LoraConfig(**config))
    model.add_adapter("second", LoraConfig(**config, lora_alpha=5))
    for name in ("default", "second"):
        model.set_adapter(name)
        peft_models.train(model)
    model.save_pretrained(tmp_path / "both")
    model.merge_and_unload(adapter_names=["second"]).save_pretrained(tmp_path / "merged")
    (tmp_path / "both" / "second").rename(tmp_path / "adapter")
    _check_against_merged(tmp_path)


def test_what_peft_itself_can_load_stays_loadable(tmp_path):
    """The cases are real: PEFT reads the folder that we read, and merges the same."""
    make, options = peft_models.CASES["patterns"]
    _tuned_by_peft(make, options, tmp_path)
    loaded = PeftModel.from_pretrained(make().from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    again = loaded.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
