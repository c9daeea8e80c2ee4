"""Which way round a matrix is stored: what shapes, siblings, configs and transformers say."""

from __future__ import annotations

import json
import time

import pytest
import torch
from odd_families import FAMILIES
from safetensors.torch import save_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.in_memory import base_source
from intruscope.adapters.pairing import pair_adapter
from intruscope.weights import architecture, orientation
from intruscope.weights.architecture import ask_transformers
from intruscope.weights.fused import Config
from intruscope.weights.layout import base_matrices
from intruscope.weights.pairing import pair_checkpoints
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore")
_UNKNOWN = {"model_type": "someones_model"}
_GPT2 = {"model_type": "gpt2"}


def _views(listing):
    return {view.name: view for views in listing.matrices.values() for view in views}


@pytest.fixture
def nobody(monkeypatch):
    """transformers must not be asked."""

    def refuse(*_args, **_options):
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(orientation, "ask_transformers", refuse)


@pytest.mark.parametrize(
    "family", ["gpt2", "llama-tied", "bert", "gpt-neox", "t5", "vit-gpt2", "clip", "whisper"]
)
def test_plain_models_are_read_from_headers_alone(family, nobody, tmp_path):
    FAMILIES[family].make(False).save_pretrained(tmp_path)
    listing = base_matrices(open_model(tmp_path))
    assert not listing.gaps
    assert len(listing.matrices) > 8


_EVIDENCE = {
    # name: (config, tensors, whether the first matrix is stored (in, out))
    "a bias": (_UNKNOWN, {"h.0.any.weight": (4, 6), "h.0.any.bias": (6,)}, True),
    "a bias of a linear layer": (_UNKNOWN, {"h.0.any.weight": (6, 4), "h.0.any.bias": (6,)}, False),
    "a bias against the type": (_GPT2, {"h.0.mlp.c_fc.weight": (6, 4), "h.0.mlp.c_fc.bias": (6,)}, False),
    "the type": (_GPT2, {"h.0.mlp.c_fc.weight": (4, 4), "h.0.mlp.c_fc.bias": (4,)}, True),
    "the type of a nested model": (
        {"model_type": "pair", "encoder": {"model_type": "bert"}, "decoder": _GPT2},
        {"decoder.h.0.mlp.c_fc.weight": (4, 4), "decoder.h.0.mlp.c_fc.bias": (4,)},
        True,
    ),
    "siblings against the type": (
        _GPT2,
        {
            "h.0.attn.c_proj.weight": (4, 4), "h.0.attn.c_proj.bias": (4,),
            "h.0.mlp.c_proj.weight": (4, 6), "h.0.mlp.c_proj.bias": (4,),
        },
        False,
    ),
    "siblings of an unknown type": (
        _UNKNOWN,
        {
            "h.0.attn.c_proj.weight": (4, 4), "h.0.attn.c_proj.bias": (4,),
            "h.0.attn.c_attn.weight": (4, 12), "h.0.attn.c_attn.bias": (12,),
        },
        True,
    ),
    "the same name in another block": (
        _UNKNOWN,
        {
            "h.0.some.weight": (4, 4), "h.0.some.bias": (4,),
            "h.1.some.weight": (4, 6), "h.1.some.bias": (6,),
        },
        True,
    ),
    "the hidden size": (_UNKNOWN, {"h.0.c_fc.weight": (4, 6), "h.0.ln_1.weight": (4,)}, True),
    "the hidden size, of a linear layer": (
        _UNKNOWN, {"h.0.c_fc.weight": (6, 4), "h.0.ln_1.weight": (4,)}, False
    ),
    "no sign of Conv1D": (_UNKNOWN, {"layers.0.q_proj.weight": (4, 4), "layers.0.q_proj.bias": (4,)}, False),
    "an embedding's name with a bias": (
        {}, {"patch_embedding.weight": (4, 6), "patch_embedding.bias": (4,)}, False
    ),
    "an embedding's name": ({}, {"embeddings.word_embeddings.weight": (9, 4)}, True),
}  # fmt: skip


@pytest.mark.parametrize("case", _EVIDENCE)
def test_the_shapes_speak_first_then_siblings_then_the_type(case, nobody, model):
    config, tensors, expected = _EVIDENCE[case]
    listing = base_matrices(model("m", tensors, config))
    first = next(iter(tensors))
    assert not listing.gaps
    assert {view.transposed for view in listing.matrices[first]} == {expected}


def _square(folder, *leaves):
    """A model of a type that nobody knows, whose matrices are all square."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    names = [f"h.{i}.{leaf}" for i in range(2) for leaf in leaves]
    tensors = {f"{name}.weight": torch.randn(6, 6, generator=generator) for name in names}
    save_file({**tensors, **{f"{name}.bias": torch.ones(6) for name in names}}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_UNKNOWN))
    return open_model(folder), tensors


@pytest.fixture
def unheard_of(monkeypatch):
    monkeypatch.setattr(orientation, "ask_transformers", lambda *_, **__: {})


@pytest.mark.usefixtures("unheard_of")
def test_what_nothing_decides_is_said_and_not_compared(tmp_path):
    base, tensors = _square(tmp_path / "base", "mlp.c_fc", "q_proj")
    tuned, _ = _square(tmp_path / "tuned", "mlp.c_fc", "q_proj")
    pairing = pair_checkpoints(base, tuned)
    assert {pair.name for pair in pairing.pairs} == {"h.0.q_proj", "h.1.q_proj"}
    assert not pairing.complete
    unknown = {name for name in tensors if "c_fc" in name}
    assert {entry.tensor for entry in pairing.coverage if entry.gap} == unknown
    (finding,) = [finding for finding in pairing.findings if finding.code == "orientation-unknown"]
    assert finding.severity == "warning"
    assert "h.0.mlp.c_fc.weight, h.1.mlp.c_fc.weight" in finding.message


@pytest.mark.usefixtures("unheard_of")
@pytest.mark.parametrize(("flag", "stored_in_out"), [(True, True), (False, False), (None, None)])
def test_the_flag_of_an_adapter_decides_what_nothing_else_does(flag, stored_in_out, tmp_path):
    base, tensors = _square(tmp_path / "base", "mlp.c_fc")
    pairing = pair_adapter(base, _adapter(tmp_path / "adapter", ["h.0.mlp.c_fc"], flag))
    assert pairing.complete == (stored_in_out is not None)
    if stored_in_out is None:
        assert "orientation-unknown" in {finding.code for finding in pairing.findings}
        assert not pairing.pairs
        return
    (pair,) = pairing.pairs
    stored = tensors["h.0.mlp.c_fc.weight"]
    assert torch.equal(pair.base.load(), stored.T if stored_in_out else stored)
    # PEFT sets the flag anew for each module: with two names it tells of the last alone.
    base, _ = _square(tmp_path / "two", "mlp.c_fc", "mlp.c_proj")
    both = pair_adapter(base, _adapter(tmp_path / "both", ["h.0.mlp.c_fc", "h.0.mlp.c_proj"], flag))
    assert not both.complete


def _adapter(folder, modules, flag):
    folder.mkdir()
    factors = {
        f"base_model.model.{name}.lora_{side}.weight": torch.randn(shape)
        for name in modules
        for side, shape in (("A", (2, 6)), ("B", (6, 2)))
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": flag}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(kept))
    return open_adapter(folder)


def test_a_model_in_memory_says_what_its_modules_are(nobody):
    model = FAMILIES["decision-transformer"].make(True)
    views = _views(base_matrices(base_source(model)))
    assert views["embed_timestep"].kind == "embedding"
    for name, module in model.named_modules():
        view = views.get(name)
        if (
            view is not None
            and view.rows is None
            and isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
        ):
            expected = module.weight.T if isinstance(module, torch.nn.Embedding) else module.weight
            assert torch.equal(view.load(), expected)


def test_a_config_can_neither_hang_the_question_nor_name_what_is_fetched(monkeypatch):
    asked = []
    monkeypatch.setattr(architecture, "_ask", lambda config: asked.append(json.loads(config)) or ())
    started = time.monotonic()
    for hostile in (
        {"num_hidden_layers": 10**9},
        {"text_config": {"n_layer": 10**9}},
        {"layer_types": ["full_attention"] * 100_000},
        {"depths": [10**9]},
    ):
        assert ask_transformers({"model_type": "gpt2", **hostile}, num_tensors=50) == {}, hostile
    assert not asked
    assert time.monotonic() - started < 2
    named = {
        "_attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "evil.Evil"},
        "torch_dtype": "x",
    }
    nested = {"backbone_config": {"attn_implementation": "someone/kernel", "use_pretrained_backbone": True}}
    ask_transformers({"model_type": "gpt2", **named, **nested}, num_tensors=50)
    assert asked == [{"model_type": "gpt2", "backbone_config": {}}]


def test_a_question_that_takes_too_long_has_no_answer(monkeypatch):
    monkeypatch.setattr(architecture, "TIME_LIMIT_SECONDS", 0.01)
    started = time.monotonic()
    assert ask_transformers({"model_type": "gpt2", "n_layer": 3, "n_embd": 48}, num_tensors=50) == {}
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("decoder.transformer.h.0.attn.c_attn", ("gpt2", "pair")),
        ("encoder.encoder.layer.0.query", ("bert", "pair")),
        ("vision_tower.blocks.0.qkv", ("vit", "pair")),
        ("model.language_model.layers.0.qkv_proj", ("phi3", "pair")),
        ("thinker.audio_tower.layers.0.fc1", ("audio", "thinker", "pair")),
        ("enc_to_dec_proj", ("pair", "phi3")),
        ("context_projection", ("pair", "phi3")),
    ],
)
def test_a_module_follows_the_config_of_its_tower(module, expected):
    config = {
        "model_type": "pair",
        "decoder": _GPT2,
        "encoder": {"model_type": "bert"},
        "vision_config": {"model_type": "vit"},
        "text_config": {"model_type": "phi3"},
        "thinker_config": {"model_type": "thinker", "audio_config": {"model_type": "audio"}},
    }
    assert Config(config).tower(module).model_types == expected
