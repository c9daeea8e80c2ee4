"""Every matrix against what the module computes with it: a transposed or permuted matrix fails here.

One token at position 0, so that rotary embeddings are the identity; biases are zero.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model

_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
_GATED = {**_WIDE, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}


def _falcon(**kwargs):
    config = transformers.FalconConfig(**_WIDE, alibi=False, bias=False, **kwargs)
    return transformers.FalconForCausalLM(config)


MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=16)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**_WIDE, intermediate_size=48)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61)
    ),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**_GATED)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GATED)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_GATED, num_local_experts=3, num_experts_per_tok=2)
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_WIDE, intermediate_size=48)),
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=61, max_seq_len=16)
    ),
    "gpt_bigcode-mq": lambda: transformers.GPTBigCodeForCausalLM(
        transformers.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=61, multi_query=True)
    ),
    "gpt_bigcode-mh": lambda: transformers.GPTBigCodeForCausalLM(
        transformers.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=61, multi_query=False)
    ),
    "openai-gpt": lambda: transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=16)
    ),
    "glm": lambda: transformers.GlmForCausalLM(transformers.GlmConfig(**_GATED, head_dim=8)),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            **_WIDE,
            intermediate_size=48,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        )
    ),
    "persimmon": lambda: transformers.PersimmonForCausalLM(
        transformers.PersimmonConfig(**_WIDE, intermediate_size=48, pad_token_id=0, qk_layernorm=False)
    ),
    "codegen": lambda: transformers.CodeGenForCausalLM(
        transformers.CodeGenConfig(
            n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=16, rotary_dim=4
        )
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **_GATED,
            num_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=40,
            shared_expert_intermediate_size=40,
        )
    ),
    "falcon-mq": lambda: _falcon(multi_query=True),
    "falcon-mh": lambda: _falcon(multi_query=False),
    "falcon-new": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
}


def _build(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def _run(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of every linear module for one token."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(name):
        def record(_module, args, output):
            seen[name] = (args[0].detach().reshape(-1, args[0].shape[-1]).clone(), output.detach().clone())

        return record

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        model(input_ids=torch.tensor([[7]]))
    return seen


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its folder and its listing, built once each."""
    cache = {}

    def get(name):
        if name not in cache:
            model, folder = _build(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            cache[name] = (model, base_matrices(open_model(folder)), folder)
        return cache[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_whole_linear_layers_compute_what_their_modules_do(saved, name):
    model, listing, _ = saved(name)
    assert not listing.gaps
    assert not listing.notes
    checked = 0
    for module, (x_BI, y_BO) in _run(model).items():
        views = listing.matrices.get(f"{module}.weight", ())
        if len(views) != 1:
            continue
        torch.testing.assert_close(
            x_BI @ views[0].load().T, y_BO.reshape(x_BI.shape[0], -1), msg=f"{module} is not what it computes"
        )
        checked += 1
    assert checked >= 3


def _capture_attention(model):
    """The (query, key, value) that the model itself hands to its attention, for layer 0."""
    captured = []

    def attend(module, query, key, value, *args, **kwargs):
        captured.append((query, key, value))
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("intruscope_capture", attend)
    model.set_attn_implementation("intruscope_capture")
    return captured


def _parts_of(listing, suffix):
    name = next(n for n in listing.matrices if n.endswith(suffix))
    return {view.kind: view for view in listing.matrices[name]}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value"),
        ("phi3", "model.layers.0.self_attn.qkv_proj"),
        ("gpt_bigcode-mq", "transformer.h.0.attn.c_attn"),
        ("gpt_bigcode-mh", "transformer.h.0.attn.c_attn"),
        ("modernbert", "model.layers.0.attn.Wqkv"),
        ("persimmon", "model.layers.0.self_attn.query_key_value"),
        ("codegen", "transformer.h.0.attn.qkv_proj"),
    ],
)
def test_fused_attention_parts_are_the_query_key_and_value_of_the_attention_function(saved, name, module):
    _, listing, _ = saved(name)
    model = _build(name)
    captured = _capture_attention(model)
    x_BI, _ = _run(model)[module]
    parts = _parts_of(listing, f"{module.partition('.')[2]}.weight")
    assert sorted(parts) == ["k", "q", "v"]
    for kind, states in zip("qkv", captured[0], strict=True):
        expected = states[0, :, 0].reshape(-1)  # heads in order, position 0
        torch.testing.assert_close((x_BI @ parts[kind].load().T)[0], expected, msg=f"{name} {kind}")


@pytest.mark.parametrize("name", ["bloom", "falcon-mq", "falcon-mh", "falcon-new"])
def test_fused_attention_parts_are_what_the_module_splits_them_into(saved, name):
    model, listing, _ = saved(name)
    attention = model.transformer.h[0].self_attention
    x_BTI = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1))
    fused = attention.query_key_value(x_BTI).detach()
    split = (attention._reshape if name == "bloom" else attention._split_heads)(fused)
    parts = _parts_of(listing, "h.0.self_attention.query_key_value.weight")
    for kind, states in zip("qkv", split, strict=True):
        per_head = states.reshape(-1, 8)  # (heads, head size) at the one position
        if name == "falcon-new" and kind != "q":
            per_head = per_head[::2]  # the module repeats each key for its two queries
        got = (x_BTI[0, 0] @ parts[kind].load().T).reshape(-1, 8)
        torch.testing.assert_close(got, per_head, msg=f"{name} {kind}")


def test_openai_gpt_thirds_are_the_query_key_and_value_of_its_attention(saved, monkeypatch):
    model, listing, _ = saved("openai-gpt")
    attention, captured = model.transformer.h[0].attn, []
    attend = attention._attn
    monkeypatch.setattr(
        attention,
        "_attn",
        lambda q, k, v, *more: captured.append((q, k.transpose(-1, -2), v)) or attend(q, k, v, *more),
    )
    x_BI, _ = _run(model)["transformer.h.0.attn.c_attn"]
    parts = _parts_of(listing, "h.0.attn.c_attn.weight")
    for kind, states in zip("qkv", captured[0], strict=True):
        torch.testing.assert_close((x_BI @ parts[kind].load().T)[0], states[0, :, 0].reshape(-1), msg=kind)


def test_mpt_thirds_are_its_chunks(saved):
    model, listing, _ = saved("mpt")
    parts = _parts_of(listing, "blocks.0.attn.Wqkv.weight")
    x_I = torch.randn(32, generator=torch.Generator().manual_seed(1))
    chunks = model.transformer.blocks[0].attn.Wqkv(x_I).detach().chunk(3, dim=-1)
    for kind, chunk in zip("qkv", chunks, strict=True):
        torch.testing.assert_close(parts[kind].load() @ x_I, chunk)


@pytest.mark.parametrize(
    ("name", "fused", "down", "activation"),
    [
        ("phi3", "gate_up_proj", "down_proj", nn.functional.silu),
        ("glm", "gate_up_proj", "down_proj", nn.functional.silu),
        ("modernbert", "Wi", "Wo", nn.functional.gelu),
    ],
)
def test_gate_and_up_give_the_input_of_down(saved, name, fused, down, activation):
    model, listing, _ = saved(name)
    seen = _run(model)
    parts = _parts_of(listing, f"layers.0.mlp.{fused}.weight")
    x_BI, _ = seen[f"model.layers.0.mlp.{fused}"]
    expected, _ = seen[f"model.layers.0.mlp.{down}"]
    got = activation(x_BI @ parts["gate"].load().T) * (x_BI @ parts["up"].load().T)
    torch.testing.assert_close(got, expected)


def _expert(parts, x_I, gate_of):
    hidden = gate_of(parts["gate"].load() @ x_I, parts["up"].load() @ x_I)
    return parts["down"].load() @ hidden


def _fused_experts(listing, layer, expert):
    views = [v for views in listing.matrices.values() for v in views]
    return {v.kind: v for v in views if f"layers.{layer}." in v.name and f"[{expert}]" in v.name}


def _swiglu(gate, up):
    return nn.functional.silu(gate) * up


def _gpt_oss_glu(gate, up):
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def test_mixtral_fused_experts_compute_what_the_experts_module_does(tmp_path):
    model = _build("mixtral")
    model.config.save_pretrained(tmp_path)
    save_file(
        {n: p.detach().contiguous() for n, p in model.named_parameters()}, tmp_path / "model.safetensors"
    )
    listing = base_matrices(open_model(tmp_path))
    experts = model.model.layers[1].mlp.experts
    x_I = torch.randn(32, generator=torch.Generator().manual_seed(1))
    for index in range(3):
        with torch.no_grad():
            expected = experts(x_I[None], torch.tensor([[index]]), torch.ones(1, 1))[0]
        torch.testing.assert_close(_expert(_fused_experts(listing, 1, index), x_I, _swiglu), expected)


def test_granite_experts_are_stored_out_in_with_gate_before_up(tmp_path):
    torch.manual_seed(3)
    config = transformers.GraniteMoeConfig(**_GATED, num_local_experts=3, num_experts_per_tok=2)
    model = transformers.GraniteMoeForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    listing = base_matrices(open_model(tmp_path))
    assert not listing.gaps
    experts = model.model.layers[1].block_sparse_moe.experts
    x_I = torch.randn(32, generator=torch.Generator().manual_seed(1))
    for index in range(3):
        with torch.no_grad():
            expected = experts(x_I[None], torch.tensor([[index]]), torch.ones(1, 1))[0]
        torch.testing.assert_close(_expert(_fused_experts(listing, 1, index), x_I, _swiglu), expected)


def test_jetmoe_attention_experts_are_whole_queries_and_outputs(tmp_path):
    torch.manual_seed(3)
    sizes = {**_GATED, "num_key_value_heads": 2}
    config = transformers.JetMoeConfig(**sizes, kv_channels=16, num_local_experts=3, num_experts_per_tok=2)
    model = transformers.JetMoeForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    listing = base_matrices(open_model(tmp_path))
    stored = model.state_dict()
    prefix = "model.layers.1.self_attention.experts."
    for leaf, kind in (("input_linear", "q"), ("output_linear", "o")):
        views = listing.matrices[f"{prefix}{leaf}.weight"]
        assert [view.kind for view in views] == [kind] * 3
        for view, expert in zip(views, stored[f"{prefix}{leaf}.weight"], strict=True):
            assert torch.equal(view.load(), expert)  # (out, in): applied with F.linear
    kinds = {v.kind for v in listing.matrices["model.layers.1.mlp.input_linear.weight"]}
    assert kinds == {"gate", "up"}


def test_mixtral_as_saved_has_each_expert_apart(saved):
    model, listing, _ = saved("mixtral")
    experts = model.model.layers[0].mlp.experts
    x_I = torch.randn(32, generator=torch.Generator().manual_seed(1))
    views = {v.name: v for views in listing.matrices.values() for v in views}
    names = [n for n in views if "layers.0." in n and "experts.2." in n]
    parts = {views[n].kind: views[n] for n in names}
    with torch.no_grad():
        expected = experts(x_I[None], torch.tensor([[2]]), torch.ones(1, 1))[0]
    torch.testing.assert_close(_expert(parts, x_I, _swiglu), expected)
    assert {v.scope for n, v in views.items() if n.endswith((".gate", ".router"))} == {"other"}


def test_gpt_oss_experts_interleave_gate_and_up_and_are_stored_in_out(tmp_path):
    torch.manual_seed(3)
    config = transformers.GptOssConfig(
        **_GATED, head_dim=8, num_local_experts=3, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    model = transformers.GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if name.endswith("bias") else parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    listing = base_matrices(open_model(tmp_path))
    assert not listing.gaps
    experts = model.model.layers[1].mlp.experts
    x_I = torch.randn(32, generator=torch.Generator().manual_seed(1))
    for index in range(3):
        with torch.no_grad():
            expected = experts(x_I[None], torch.tensor([[index]]), torch.ones(1, 1))[0]
        torch.testing.assert_close(_expert(_fused_experts(listing, 1, index), x_I, _gpt_oss_glu), expected)


def test_llama4_experts_are_stored_in_out_with_gate_before_up(tmp_path):
    from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

    config = transformers.Llama4TextConfig(
        hidden_size=32, intermediate_size=48, num_local_experts=3, num_hidden_layers=2
    )
    torch.manual_seed(3)
    experts = Llama4TextExperts(config)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.3)
    config.save_pretrained(tmp_path)
    prefix = "model.layers.1.feed_forward.experts."
    save_file({prefix + n: p.detach() for n, p in experts.named_parameters()}, tmp_path / "model.safetensors")
    listing = base_matrices(open_model(tmp_path))
    x_I = torch.randn(32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_EI = experts(x_I.repeat(3, 1))
    for index in range(3):
        got = _expert(_fused_experts(listing, 1, index), x_I, _swiglu)
        torch.testing.assert_close(got, expected_EI[index])


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_an_embedding_maps_a_one_hot_word_to_its_vector(saved, name):
    model, listing, _ = saved(name)
    embedding = model.get_input_embeddings()
    view = next(
        v
        for views in listing.matrices.values()
        for v in views
        if v.kind == "embedding" and v.shape == (32, 61)
    )
    one_hot = nn.functional.one_hot(torch.tensor(5), 61).float()
    torch.testing.assert_close(view.load() @ one_hot, embedding(torch.tensor(5)).detach())
    assert view.scope == "other"


@pytest.mark.parametrize("name", MODELS)
def test_parts_reassemble_the_stored_tensor_and_cut_a_left_factor_alike(saved, name):
    """Selection, not arithmetic: rows put back where they came from are the tensor, bit for bit."""
    _, listing, _ = saved(name)
    for views in listing.matrices.values():
        if views[0].rows is None:
            continue
        stored = views[0].tensor.read()
        whole = stored.T if views[0].transposed else stored
        rebuilt = torch.full_like(whole, float("nan"))
        factor_FR = torch.randn(whole.shape[0], 3, generator=torch.Generator().manual_seed(0))
        for view in views:
            rows = list(view.rows.indices())
            assert view.load().shape == view.shape
            assert view.load().is_contiguous()
            rebuilt[rows] = view.load()
            torch.testing.assert_close(view.select_rows(factor_FR), factor_FR[rows], rtol=0, atol=0)
        assert torch.equal(rebuilt, whole)


@pytest.mark.parametrize("name", MODELS)
def test_scope_is_the_linear_layers_of_the_blocks(saved, name):
    _, listing, _ = saved(name)
    for stored, views in listing.matrices.items():
        for view in views:
            in_block = any(
                f".{container}." in f".{stored}" for container in ("h", "layers", "layer", "blocks")
            )
            router = view.kind == "router"
            assert (view.scope == "paper") == (in_block and not router), view.name
            assert (view.layer is not None) == in_block
    kinds = {v.kind for views in listing.matrices.values() for v in views if v.scope == "paper"}
    assert {"q", "k", "v", "o", "up", "down"} <= kinds
