"""Every spelling, against what PEFT merges: base + update = merge_and_unload, on tiny real models."""

from __future__ import annotations

import pickle

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.source import open_model


def _llama(tied: bool = False):
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=40, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def _gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=40, n_positions=32))


def _bert():
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, vocab_size=40,
            max_position_embeddings=16,
        )
    )  # fmt: skip


_CASES = {
    "square-wide-tall": (_llama, {"target_modules": ["q_proj", "up_proj", "down_proj", "k_proj"]}),
    "rslora": (_llama, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "patterns": (
        _llama,
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.up_proj": 5, "layers.[01].self_attn.q_proj": 4},
            "alpha_pattern": {"q_proj": 9, r"^model.layers.1.*.k_proj": 1},
        },
    ),
    "dora": (_llama, {"target_modules": ["q_proj", "up_proj", "down_proj"], "use_dora": True}),
    "conv1d": (_gpt2, {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True}),
    "conv1d-dora": (_gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "embedding": (_llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-dora": (_llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head": (_llama, {"target_modules": ["lm_head", "q_proj"]}),
    "lora-bias": (_bert, {"target_modules": ["query", "dense"], "lora_bias": True}),
    "modules-to-save": (_bert, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "tokens": (_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3, 30]}),
    "layers": (_llama, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "orthogonal": (_llama, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4}),
    "gaussian": (_llama, {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
}


def _tuned_by_peft(make, options, folder):
    """Save base and adapter; the merged model's folder is PEFT's own answer, in float32."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder / "base")
    model = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            # DoRA's magnitudes stay positive, as training leaves them.
            parameter.data = parameter.data + (noise.abs() if "magnitude" in name else 0.3 * noise)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload(safe_merge=True).save_pretrained(folder / "merged")


def _tuned(pair):
    base = pair.base.load().double()
    update = pickle.loads(pickle.dumps(pair.update)).load(pair.base.load())
    if isinstance(update, DenseUpdate):
        return base, update.tuned_OI.double()
    return base, base + update.left_OR.double() @ update.right_RI.double()


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_update_is_what_peft_merges(case, tmp_path):
    make, options = _CASES[case]
    _tuned_by_peft(make, options, tmp_path)
    base, merged = open_model(tmp_path / "base"), open_model(tmp_path / "merged")
    pairing = pair_adapter(base, open_adapter(tmp_path / "adapter"))
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
            assert torch.linalg.vector_norm(got - expected) <= 2e-6 * scale + 1e-6
            if before.shape[0] == before.shape[1]:
                assert torch.linalg.vector_norm((got - before).T - (expected - before)) > 0.1 * scale
    assert changed == set(pairs)
    assert changed
    named = [(entry.origin, entry.tensor) for entry in pairing.coverage]
    assert len(named) == len(set(named))
    assert {t for o, t in named if o == "adapter"} == set(open_adapter(tmp_path / "adapter").tensors)
    assert {t for o, t in named if o == "base"} == set(base.tensors)
