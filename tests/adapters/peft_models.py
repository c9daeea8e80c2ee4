"""Tiny models made from configs, and every way of adapting them that is read: name to (model, options)."""

from __future__ import annotations

import torch
import transformers
from torch import nn

_WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
_GATED = {
    **_WIDE, "intermediate_size": 24, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama(tied: bool = False) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GATED, tie_word_embeddings=tied))


def tied_llama() -> nn.Module:
    return llama(tied=True)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=40, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        **{**_WIDE, "num_hidden_layers": 1}, intermediate_size=24, max_position_embeddings=16
    )
    return transformers.BertForSequenceClassification(config)


def phi3() -> nn.Module:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**_GATED))


def gpt_neox() -> nn.Module:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_WIDE, intermediate_size=24))


def bloom() -> nn.Module:
    config = transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=4, vocab_size=40)
    return transformers.BloomForCausalLM(config)


def falcon() -> nn.Module:
    config = transformers.FalconConfig(
        **_WIDE, alibi=False, bias=False, new_decoder_architecture=True, num_kv_heads=2
    )
    return transformers.FalconForCausalLM(config)


def falcon_multi_query() -> nn.Module:
    return transformers.FalconForCausalLM(
        transformers.FalconConfig(**_WIDE, alibi=False, bias=False, multi_query=True)
    )


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_GATED, num_local_experts=3))


def qwen3_moe() -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **_GATED, head_dim=4, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=20
    )
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(
        **_GATED, head_dim=4, num_local_experts=3, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    model = transformers.GptOssForCausalLM(config)
    for parameter in model.parameters():  # it leaves its experts unset
        nn.init.normal_(parameter, std=0.3)
    return model


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, num_labels=3)
    return transformers.ConvNextForImageClassification(config)


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=60, max_source_positions=10,
        max_target_positions=10, num_mel_bins=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def train(model: nn.Module) -> None:
    """Stand in for training: every trainable number is moved, by a seed."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            # DoRA's magnitudes stay positive, as training leaves them.
            parameter.data = parameter.data + (noise.abs() if "magnitude" in name else 0.3 * noise)


_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = {
    "square-wide-tall": (llama, {"target_modules": ["q_proj", "up_proj", "down_proj", "k_proj"]}),
    "rslora": (llama, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.up_proj": 5, "layers.[01].self_attn.q_proj": 4},
            "alpha_pattern": {"q_proj": 9, r"^model.layers.1.*.k_proj": 1},
        },
    ),
    # PEFT's dot is any character, its match ends at the end, and the first pattern wins.
    "dotted-patterns": (
        llama,
        {
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"attn.q_proj": 5, "layers.0.self.attn.q_proj": 2, "self_attn.k_proj": 4},
            "alpha_pattern": {"(.+)?k_proj": 5, "k_proj": 6},
            "use_rslora": True,
        },
    ),
    "dora": (llama, {"target_modules": ["q_proj", "up_proj", "down_proj"], "use_dora": True}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True}),
    "conv1d-dora": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-dora": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "embedding-tied": (tied_llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-saved": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "head": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "head-dora": (llama, {"target_modules": ["lm_head"], "use_dora": True}),
    "conv1d-saved": (gpt2, {"target_modules": ["c_attn"], "modules_to_save": ["mlp.c_fc"]}),
    "convolution-saved": (resnet, {"target_modules": ["classifier.1"], "modules_to_save": ["convolution"]}),
    "head-saved": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "lora-bias": (bert, {"target_modules": ["query", "dense"], "lora_bias": True}),
    "bias": (bert, {"target_modules": ["query"], "bias": "all"}),
    "modules-to-save": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3, 30]}),
    "tokens-tied": (tied_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3, 30]}),
    "tokens-of-two": (
        bert,
        {
            "target_modules": ["query"],
            "trainable_token_indices": {"word_embeddings": [1, 5], "position_embeddings": [2]},
        },
    ),
    "layers": (llama, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "orthogonal": (llama, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4}),
    "gaussian": (llama, {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "mica": (llama, {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "mica"}),
    "fused-qkv-grouped": (phi3, {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "fused-qkv-dora": (phi3, {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    "fused-qkv-per-head": (gpt_neox, {"target_modules": ["query_key_value", "dense"]}),
    "fused-qkv-bloom": (bloom, {"target_modules": ["query_key_value"]}),
    "fused-qkv-falcon": (falcon, {"target_modules": ["query_key_value"]}),
    "fused-qkv-multi-query": (falcon_multi_query, {"target_modules": ["query_key_value"]}),
    "convolution": (resnet, {"target_modules": ["convolution"]}),
    "convolution-dora": (resnet, {"target_modules": ["convolution"], "use_dora": True}),
    "convolution-1d": (whisper, {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "experts-stored-apart": (mixtral, {"target_modules": [], "target_parameters": _EXPERTS}),
    "experts-down-only": (qwen3_moe, {"target_modules": ["q_proj"], "target_parameters": _EXPERTS[1:]}),
    "experts-rank": (
        qwen3_moe,
        {
            "target_modules": [],
            "target_parameters": _EXPERTS,
            "rank_pattern": {r".*\.gate_up_proj": 5},
            "alpha_pattern": {"experts.down_proj": 2},
            "use_rslora": True,
        },
    ),
    "experts-stored-fused": (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}),
}
