"""The families of odd but valid models: tiny configs of transformers, and what is known of each.

Rows of fused parts are written down here a second time, as each ``modeling_*.py`` takes them apart: row
numbers are reshaped the way the model reshapes its activations.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WIDTH, HEADS, WORDS = 32, 4, 61
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS}
_BERT = {**_COMMON, "vocab_size": WORDS, "max_position_embeddings": 20}
_ROWS = dict[str, list[int]]


def _inner(square: bool) -> int:
    return WIDTH if square else 48


def _gpt2(square: bool, **more: Any) -> t.GPT2Config:
    return t.GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=HEADS, vocab_size=WORDS, n_positions=20, n_inner=_inner(square),
        bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip


def _gated(square: bool, **more: Any) -> dict[str, Any]:
    return {
        **_COMMON, "vocab_size": WORDS, "intermediate_size": _inner(square), "num_key_value_heads": 2, **_IDS,
        **more,
    }  # fmt: skip


def _vit(square: bool) -> t.ViTConfig:
    return t.ViTConfig(**_COMMON, intermediate_size=_inner(square), image_size=16, patch_size=8)


def _bert(square: bool, **more: Any) -> t.BertConfig:
    return t.BertConfig(**_BERT, intermediate_size=_inner(square), **more)


def _clip(square: bool, kind: str) -> dict[str, Any]:
    sizes = {**_COMMON, "intermediate_size": _inner(square)}
    if kind == "vision":
        return {**sizes, "image_size": 16, "patch_size": 8}
    return {**sizes, "vocab_size": WORDS, "max_position_embeddings": 20, **_IDS}


def _two_sided(square: bool) -> dict[str, Any]:
    sides = {
        f"{side}_{size}": value
        for side in ("encoder", "decoder")
        for size, value in (("layers", 1), ("attention_heads", HEADS), ("ffn_dim", _inner(square)))
    }
    return {
        **sides, **_IDS, "d_model": WIDTH, "vocab_size": WORDS, "max_position_embeddings": 20,
        "decoder_start_token_id": 1, "forced_eos_token_id": 2,
    }  # fmt: skip


def _thirds(num_rows: int, _: Any) -> _ROWS:
    rows = torch.arange(num_rows).chunk(3)
    return {part: each.tolist() for part, each in zip("qkv", rows, strict=True)}


def _keys_and_values(num_rows: int, _: Any) -> _ROWS:
    rows = torch.arange(num_rows).chunk(2)
    return {part: each.tolist() for part, each in zip("kv", rows, strict=True)}


def _per_head(num_rows: int, _: Any) -> _ROWS:
    rows = torch.arange(num_rows).view(HEADS, 3, -1)
    return {part: rows[:, i].flatten().tolist() for i, part in enumerate("qkv")}


def _grouped(num_rows: int, _: Any) -> _ROWS:
    """Queries of all heads, then keys and values of two groups."""
    head = num_rows // (HEADS + 4)
    q, k, v = torch.arange(num_rows).split([HEADS * head, 2 * head, 2 * head])
    return {"q": q.tolist(), "k": k.tolist(), "v": v.tolist()}


def _one_group(num_rows: int, _: Any) -> _ROWS:
    head = num_rows // (HEADS + 2)
    q, k, v = torch.arange(num_rows).split([HEADS * head, head, head])
    return {"q": q.tolist(), "k": k.tolist(), "v": v.tolist()}


def _by_group(num_rows: int, _: Any) -> _ROWS:
    """Falcon's new decoder: two groups, each with its queries, its key and its value."""
    rows = torch.arange(num_rows).view(2, HEADS // 2 + 2, -1)
    parts = {"q": rows[:, :-2], "k": rows[:, -2], "v": rows[:, -1]}
    return {part: each.flatten().tolist() for part, each in parts.items()}


def _shards(num_rows: int, _: Any) -> _ROWS:
    """CodeGen: four shards, each query, value, key."""
    rows = torch.arange(num_rows).view(4, 3, -1)
    return {part: rows[:, i].flatten().tolist() for i, part in enumerate("qvk")}


def _halves(num_rows: int, _: Any) -> _ROWS:
    gate, up = torch.arange(num_rows).chunk(2)
    return {"gate": gate.tolist(), "up": up.tolist()}


def _alternate(num_rows: int, _: Any) -> _ROWS:
    rows = torch.arange(num_rows)
    return {"gate": rows[::2].tolist(), "up": rows[1::2].tolist()}


_FUSED: dict[str, Callable[[int, Any], _ROWS]] = {
    r"crossattention\.c_attn$": _keys_and_values,
    r"(?<!experts\.)gate_up_proj$|Wi$|input_linear": _halves,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How models of one family are made, disguised and taken apart.

    Attributes:
        build: From whether its inner width is its width to the model.
        fused: Patterns of module names, with the rows of each part.
        experts: ``oi`` where fused experts are stored (experts, out, in), ``io`` where (experts, in, out).
        change: What is done to the saved folder, so that it no longer says what it is.
    """

    build: Callable[[bool], nn.Module]
    fused: dict[str, Callable[[int, Any], _ROWS]]
    experts: str = "oi"
    change: Callable[[Path], None] | None = None

    def make(self, square: bool) -> nn.Module:
        return self.build(square)

    def disguise(self, folder: Path) -> None:
        if self.change is not None:
            self.change(folder)

    def targets(self, model: nn.Module) -> list[str]:
        """Every layer that PEFT can put factors on, by its whole name; without the head of words."""
        attention = {name for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
            and module is not head
            and name.rpartition(".")[0] not in attention
            and min(module.weight.shape) >= 4
        ]

    def rows_of(self, module: str, part: str, num_rows: int, config: Any) -> list[int] | None:
        """The rows of a fused part by the code of the model."""
        module = re.sub(r"\[\d+\]$", "", module)
        for pattern, rows in [*_FUSED.items(), *self.fused.items()]:
            if re.search(pattern, module):
                return rows(num_rows, config).get(part)
        return None


def _family(build: Callable[[bool], nn.Module], fused: Any = None, **more: Any) -> Family:
    return Family(build=build, fused=fused or {}, **more)


def _edit(**fields: Any) -> Callable[[Path], None]:
    """Change a saved config; None removes a field."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return change


def _rename(*pairs: tuple[str, str], **fields: Any) -> Callable[[Path], None]:
    """Another name of each tensor, as in a model of another author; and an unknown type."""

    def change(folder: Path) -> None:
        _edit(**fields)(folder)
        tensors = load_file(folder / "model.safetensors")
        for old, new in pairs:
            tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _as_linear(folder: Path) -> None:
    """A GPT-2 whose layers were converted to nn.Linear, under the config of GPT-2."""
    tensors = load_file(folder / "model.safetensors")
    leaf = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
    tensors = {n: x.T.contiguous() if leaf.search(n) else x for n, x in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


_C_ATTN = {r"\.c_attn$": _thirds}
_UNKNOWN = {"model_type": "someones_model", "architectures": ["SomeonesModel"]}


def _encoder_decoder(square: bool, encoder: Any, decoder: Any) -> nn.Module:
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return t.EncoderDecoderModel(config)


def _cross(square: bool) -> t.GPT2Config:
    return _gpt2(square, add_cross_attention=True, is_decoder=True)


def _speech(square: bool) -> nn.Module:
    wav = t.Wav2Vec2Config(
        **_COMMON, intermediate_size=_inner(square),
        conv_dim=(16, 16), conv_kernel=(3, 3), conv_stride=(2, 2),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    config = t.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(wav, _cross(square))
    return t.SpeechEncoderDecoderModel(config)


def _vision_decoder(square: bool) -> nn.Module:
    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(_vit(square), _cross(square))
    return t.VisionEncoderDecoderModel(config)


def _clvp(square: bool) -> nn.Module:
    encoder = {
        **_COMMON, "vocab_size": WORDS, "intermediate_size": _inner(square), "projection_dim": 24,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    decoder = {
        **_COMMON, "vocab_size": WORDS, "n_inner": _inner(square), "max_position_embeddings": 20,
        "max_text_tokens": 20, "num_mel_attn_blocks": 2, "feature_size": 16,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = t.ClvpConfig(
        text_config=encoder, speech_config=encoder, decoder_config=decoder, projection_dim=24
    )
    return t.ClvpModelForConditionalGeneration(config)


def _llava(square: bool) -> nn.Module:
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**_clip(square, "vision")),
        text_config=t.LlamaConfig(**_gated(square)),
        image_token_index=5,
        vision_feature_layer=-1,
    )
    return t.LlavaForConditionalGeneration(config)


def _qwen2_vl(square: bool) -> nn.Module:
    text = _gated(square, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
    vision = {
        "depth": 1,
        "embed_dim": WIDTH,
        "hidden_size": WIDTH,
        "num_heads": HEADS,
        "mlp_ratio": 1,
        "patch_size": 4,
    }
    return t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(text_config=text, vision_config=vision))


def _qwen2_5_vl(square: bool) -> nn.Module:
    text = _gated(square, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
    vision = {
        "depth": 1, "hidden_size": WIDTH, "num_heads": HEADS, "intermediate_size": _inner(square),
        "out_hidden_size": WIDTH, "patch_size": 4,
    }  # fmt: skip
    return t.Qwen2_5_VLForConditionalGeneration(t.Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _t5(square: bool, **more: Any) -> nn.Module:
    config = t.T5Config(
        d_model=WIDTH, d_kv=8, d_ff=_inner(square), num_layers=1, num_heads=HEADS, vocab_size=WORDS,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, **more,
    )  # fmt: skip
    return t.T5ForConditionalGeneration(config)


def _falcon(square: bool, **more: Any) -> nn.Module:
    config = t.FalconConfig(
        **_COMMON, vocab_size=WORDS, ffn_hidden_size=_inner(square), alibi=False, bias=False, **more
    )
    return t.FalconForCausalLM(config)


def _blip(square: bool) -> nn.Module:
    text = {**_clip(square, "text"), "is_decoder": True, "encoder_hidden_size": WIDTH, "sep_token_id": 2}
    return t.BlipForConditionalGeneration(
        t.BlipConfig(text_config=text, vision_config=_clip(square, "vision"), projection_dim=24)
    )


def _whisper(square: bool) -> nn.Module:
    sizes = _two_sided(square)
    del sizes["max_position_embeddings"], sizes["forced_eos_token_id"]
    config = t.WhisperConfig(**sizes, max_source_positions=10, max_target_positions=10, num_mel_bins=8)
    return t.WhisperForConditionalGeneration(config)


def _bigcode(square: bool, *, multi_query: bool) -> nn.Module:
    config = t.GPTBigCodeConfig(
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        vocab_size=WORDS,
        n_positions=20,
        n_inner=_inner(square),
        multi_query=multi_query,
        bos_token_id=1,
        eos_token_id=2,
    )
    return t.GPTBigCodeForCausalLM(config)


FAMILIES: dict[str, Family] = {
    "gpt2": _family(lambda s: t.GPT2LMHeadModel(_gpt2(s)), _C_ATTN),
    "gpt2-body": _family(lambda s: t.GPT2Model(_gpt2(s)), _C_ATTN),
    "gpt2-classifier": _family(
        lambda s: t.GPT2ForSequenceClassification(_gpt2(s, pad_token_id=0, num_labels=12)), _C_ATTN
    ),
    "gpt2-untied": _family(lambda s: t.GPT2LMHeadModel(_gpt2(s, tie_word_embeddings=False)), _C_ATTN),
    "gpt2-as-linear": _family(lambda s: t.GPT2LMHeadModel(_gpt2(s)), _C_ATTN, change=_as_linear),
    "gpt2-without-config": _family(lambda s: t.GPT2LMHeadModel(_gpt2(s)), _C_ATTN, change=_no_config),
    "gpt2-of-unknown-type": _family(lambda s: t.GPT2LMHeadModel(_gpt2(s)), _C_ATTN, change=_edit(**_UNKNOWN)),
    "gpt2-as-linear-of-unknown-type": _family(
        lambda s: t.GPT2LMHeadModel(_gpt2(s)), _C_ATTN, change=lambda f: (_as_linear(f), _edit(**_UNKNOWN)(f))
    ),
    "openai-gpt": _family(
        lambda s: t.OpenAIGPTLMHeadModel(
            t.OpenAIGPTConfig(n_embd=WIDTH, n_layer=2, n_head=HEADS, vocab_size=WORDS, n_positions=20)
        ),
        _C_ATTN,
    ),
    "imagegpt": _family(
        lambda s: t.ImageGPTForCausalImageModeling(
            t.ImageGPTConfig(
                n_embd=WIDTH, n_layer=2, n_head=HEADS, vocab_size=WORDS, n_positions=20, n_inner=_inner(s)
            )
        ),
        _C_ATTN,
    ),
    "decision-transformer": _family(
        lambda s: t.DecisionTransformerModel(
            t.DecisionTransformerConfig(
                hidden_size=WIDTH,
                n_layer=2,
                n_head=HEADS,
                n_inner=_inner(s),
                state_dim=12,
                act_dim=11,
                max_ep_len=24,
                vocab_size=WORDS,
                n_positions=20,
            )
        ),
        _C_ATTN,
    ),
    "clvp": _family(_clvp),
    "vit-gpt2": _family(_vision_decoder, _C_ATTN),
    "bert-gpt2": _family(lambda s: _encoder_decoder(s, _bert(s), _cross(s)), _C_ATTN),
    "gpt2-gpt2": _family(lambda s: _encoder_decoder(s, _gpt2(s), _cross(s)), _C_ATTN),
    "gpt2-bert": _family(
        lambda s: _encoder_decoder(s, _gpt2(s), _bert(s, add_cross_attention=True, is_decoder=True)), _C_ATTN
    ),
    "bert-bert": _family(
        lambda s: _encoder_decoder(s, _bert(s), _bert(s, add_cross_attention=True, is_decoder=True))
    ),
    "wav2vec2-gpt2": _family(_speech, _C_ATTN),
    "gpt-neo": _family(
        lambda s: t.GPTNeoForCausalLM(
            t.GPTNeoConfig(
                hidden_size=WIDTH,
                num_layers=2,
                num_heads=HEADS,
                attention_types=[[["global", "local"], 1]],
                vocab_size=WORDS,
                max_position_embeddings=20,
                intermediate_size=_inner(s),
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    ),
    "gpt-bigcode": _family(
        lambda s: _bigcode(s, multi_query=True),
        {r"c_attn$": _one_group},
    ),
    "gpt-bigcode-heads": _family(
        lambda s: _bigcode(s, multi_query=False),
        {r"c_attn$": _per_head},
    ),
    "gpt-neox": _family(
        lambda s: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(
                **_COMMON, vocab_size=WORDS, intermediate_size=_inner(s), bos_token_id=1, eos_token_id=2
            )
        ),
        {"query_key_value": _per_head},
    ),
    "bloom": _family(
        lambda s: t.BloomForCausalLM(
            t.BloomConfig(
                hidden_size=WIDTH, n_layer=2, n_head=HEADS, vocab_size=WORDS, bos_token_id=1, eos_token_id=2
            )
        ),
        {"query_key_value": _per_head},
    ),
    "falcon-one-group": _family(lambda s: _falcon(s, multi_query=True), {"query_key_value": _one_group}),
    "falcon-heads": _family(lambda s: _falcon(s, multi_query=False), {"query_key_value": _per_head}),
    "falcon-new": _family(
        lambda s: _falcon(s, new_decoder_architecture=True, num_kv_heads=2), {"query_key_value": _by_group}
    ),
    "phi3": _family(lambda s: t.Phi3ForCausalLM(t.Phi3Config(**_gated(s))), {"qkv_proj": _grouped}),
    "glm": _family(lambda s: t.GlmForCausalLM(t.GlmConfig(**_gated(s), head_dim=8))),
    "mpt": _family(
        lambda s: t.MptForCausalLM(
            t.MptConfig(
                d_model=WIDTH,
                n_heads=HEADS,
                n_layers=2,
                vocab_size=WORDS,
                max_seq_len=20,
                expansion_ratio=1 if s else 2,
            )
        ),
        {"Wqkv": _thirds},
    ),
    "codegen": _family(
        lambda s: t.CodeGenForCausalLM(
            t.CodeGenConfig(
                n_embd=WIDTH,
                n_layer=2,
                n_head=HEADS,
                vocab_size=WORDS,
                n_positions=20,
                rotary_dim=4,
                n_inner=_inner(s),
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        {"qkv_proj": _shards},
    ),
    "persimmon": _family(
        lambda s: t.PersimmonForCausalLM(
            t.PersimmonConfig(
                **_COMMON, vocab_size=WORDS, intermediate_size=_inner(s), qk_layernorm=False, **_IDS
            )
        ),
        {"query_key_value": _per_head},
    ),
    "modernbert": _family(
        lambda s: t.ModernBertForMaskedLM(
            t.ModernBertConfig(
                **_COMMON,
                vocab_size=WORDS,
                intermediate_size=_inner(s),
                **_IDS,
                cls_token_id=1,
                sep_token_id=2,
            )
        ),
        {"Wqkv": _thirds},
    ),
    "mixtral": _family(
        lambda s: t.MixtralForCausalLM(
            t.MixtralConfig(**_gated(s), num_local_experts=3, num_experts_per_tok=2)
        ),
        {"experts.gate_up_proj": _halves},
    ),
    "gpt-oss": _family(
        lambda s: t.GptOssForCausalLM(
            t.GptOssConfig(
                **_gated(s),
                head_dim=8,
                num_local_experts=3,
                num_experts_per_tok=2,
                layer_types=["full_attention"] * 2,
            )
        ),
        {r"experts\.gate_up_proj": _alternate},
        experts="io",
    ),
    "granite-moe": _family(
        lambda s: t.GraniteMoeForCausalLM(
            t.GraniteMoeConfig(**_gated(s), num_local_experts=3, num_experts_per_tok=2)
        ),
        {"experts.gate_up_proj": _halves},
    ),
    "llava": _family(_llava),
    "qwen2-vl": _family(_qwen2_vl, {r"attn\.qkv$": _thirds}),
    "qwen2.5-vl": _family(_qwen2_5_vl, {r"attn\.qkv$": _thirds}),
    "clip": _family(
        lambda s: t.CLIPModel(
            t.CLIPConfig(text_config=_clip(s, "text"), vision_config=_clip(s, "vision"), projection_dim=24)
        )
    ),
    "siglip": _family(
        lambda s: t.SiglipModel(
            t.SiglipConfig(text_config=_clip(s, "text"), vision_config=_clip(s, "vision"))
        )
    ),
    "siglip2": _family(
        lambda s: t.Siglip2Model(
            t.Siglip2Config(
                text_config=_clip(s, "text"),
                vision_config={**_COMMON, "intermediate_size": _inner(s), "patch_size": 4, "num_patches": 16},
            )
        )
    ),
    "blip": _family(_blip),
    "t5": _family(_t5),
    "t5-gated": _family(lambda s: _t5(s, feed_forward_proj="gated-gelu")),
    "bart": _family(lambda s: t.BartForConditionalGeneration(t.BartConfig(**_two_sided(s)))),
    "whisper": _family(_whisper),
    "bert": _family(lambda s: t.BertForMaskedLM(_bert(s))),
    "roberta": _family(
        lambda s: t.RobertaForMaskedLM(t.RobertaConfig(**_BERT, intermediate_size=_inner(s), **_IDS))
    ),
    "albert": _family(
        lambda s: t.AlbertForMaskedLM(t.AlbertConfig(**_BERT, intermediate_size=_inner(s), embedding_size=16))
    ),
    "electra": _family(
        lambda s: t.ElectraForPreTraining(
            t.ElectraConfig(**_BERT, intermediate_size=_inner(s), embedding_size=16)
        )
    ),
    "llama-tied": _family(lambda s: t.LlamaForCausalLM(t.LlamaConfig(**_gated(s), tie_word_embeddings=True))),
}
