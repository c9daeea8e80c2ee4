"""Adapters on words whose embedding and head are one parameter, against what PEFT runs and merges."""

from __future__ import annotations

import json

import peft_models
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.engine.settings import RunOptions
from intruscope.errors import UnsupportedFormat
from intruscope.repair.survey import survey
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.source import open_model
from intruscope.writing.placing import check_mergeable

pytestmark = pytest.mark.filterwarnings("ignore")
_CASES = {
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "head-dora": {"target_modules": ["lm_head"], "use_dora": True},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "head-saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tied-by-peft": {"target_modules": ["lm_head", "q_proj"], "ensure_weight_tying": True},
    "saved-tied-by-peft": {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True
    },
}  # fmt: skip


def _trained(options, folder):
    """A tied llama with an adapter, moved in place as an optimiser moves it: what is shared stays so."""
    torch.manual_seed(0)
    model = peft_models.tied_llama()
    model.save_pretrained(folder / "base")
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += noise.abs() if "magnitude" in name else 0.3 * noise
    model.save_pretrained(folder / "adapter")
    return model


def _tuned(pair):
    base = pair.base.load().double()
    update = pair.update.load(pair.base.load())
    if isinstance(update, DenseUpdate):
        return update.tuned_OI.double()
    return base + update.left_OR.double() @ update.right_RI.double()


@pytest.mark.parametrize("case", _CASES)
def test_a_tied_head_is_read_as_peft_runs_it(case, tmp_path):
    model = _trained(_CASES[case], tmp_path)
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert pairing.complete
    pairs = {pair.name: pair for pair in pairing.pairs}
    head = pairs["lm_head"]
    assert (head.kind, head.scope, head.base.shape) == ("head", "other", (40, 16))
    inner = model.base_model.model
    start = open_model(tmp_path / "base").tensors["model.embed_tokens.weight"].read()
    with torch.no_grad():
        runs = inner.lm_head(torch.eye(16)).T.double()
        words = inner.model.embed_tokens(torch.arange(40)).T.double()
    assert (runs - start).norm() > 1.0
    torch.testing.assert_close(_tuned(head), runs, rtol=1e-4, atol=1e-5)
    if "model.embed_tokens" in pairs:
        torch.testing.assert_close(_tuned(pairs["model.embed_tokens"]), words, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(words, start.T.double())
    if case == "tied-by-peft":
        torch.testing.assert_close(words.T, runs, rtol=1e-4, atol=1e-5)
    warned = "tied-head" in {finding.code for finding in pairing.findings}
    assert warned == ("saved" not in case)
    entries = [e for e in pairing.coverage if e.tensor == "model.embed_tokens.weight"]
    assert [(e.status, "lm_head" in e.matrices) for e in entries] == [("compared", True)]


def _shared_by_two(name, **config):
    sizes = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    if name == "t5":
        options = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**options, **sizes, **config))
    sides = {
        f"{side}_{size}": value
        for side in ("encoder", "decoder")
        for size, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    more = {"d_model": 16, "max_position_embeddings": 16, "bos_token_id": 1, "forced_eos_token_id": 2}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(**sides, **more, **sizes, **config)
    )


_MODELS = {
    "tied": peft_models.tied_llama,
    "own": peft_models.llama,
    "t5": lambda: _shared_by_two("t5"),
    "bart": lambda: _shared_by_two("bart"),
}
_WORDS = ("embed_tokens", "lm_head", "shared")
# What is trained: a model, its adapter, the words it is resized to, and the warnings of a merge that differs.
_SHARED = {
    "tokens": ("tied", {"trainable_token_indices": [7, 3, 30]}, None, set()),
    "tokens-embedding": ("tied", {"trainable_token_indices": {"embed_tokens": [7, 3]}}, None, set()),
    "tokens-head": ("tied", {"trainable_token_indices": {"lm_head": [7, 3]}}, None, {"tied-head"}),
    "tokens-head-own": ("own", {"trainable_token_indices": {"lm_head": [7, 3]}}, None, set()),
    "tokens-both-own": (
        "own", {"trainable_token_indices": {"lm_head": [7, 3], "embed_tokens": [1, 2, 9]}}, None, set()
    ),
    "tokens-both": (
        "tied", {"trainable_token_indices": {"lm_head": [7, 3], "embed_tokens": [7, 3]}}, None, set()
    ),
    "tokens-differ": (
        "tied", {"trainable_token_indices": {"lm_head": [7, 3], "embed_tokens": [1]}}, None, {"tied-head"}
    ),
    "embedding": ("tied", {"target_modules": ["embed_tokens"]}, None, {"tied-head"}),
    "embedding-saved": ("tied", {"modules_to_save": ["embed_tokens"]}, None, set()),
    "both-saved": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}, None, set()),
    "both-saved-tied": (
        "tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, None, set()
    ),
    "resized-saved": ("own", {"modules_to_save": ["embed_tokens", "lm_head"]}, 45, set()),
    "resized-saved-tied": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}, 45, set()),
    "resized-embedding": ("own", {"modules_to_save": ["embed_tokens"]}, 45, set()),
    "resized-tokens": ("own", {"trainable_token_indices": [41, 3, 44]}, 45, set()),
    "resized-tokens-tied": ("tied", {"trainable_token_indices": [41, 3, 44]}, 45, set()),
    "t5-shared": ("t5", {"target_modules": ["shared"]}, None, {"unused-module"}),
    "t5-shared-saved": ("t5", {"modules_to_save": ["shared"]}, None, {"unused-module"}),
    "t5-embeddings": ("t5", {"target_modules": ["embed_tokens"]}, None, {"tied-head"}),
    "t5-head": ("t5", {"target_modules": ["lm_head"]}, None, {"tied-head"}),
    "t5-tokens": ("t5", {"trainable_token_indices": [7, 3]}, None, set()),
    "bart-shared": ("bart", {"target_modules": ["shared"]}, None, {"unused-module"}),
    "bart-embeddings": ("bart", {"target_modules": ["embed_tokens"]}, None, {"tied-head"}),
    "bart-tokens": ("bart", {"trainable_token_indices": [7, 3]}, None, set()),
}  # fmt: skip


def _computed(model):
    """What each module of words computes, (words, width): of every word, or of every unit vector."""
    found = {}
    with torch.no_grad():
        for name, module in model.named_modules(remove_duplicate=False):
            if name.rpartition(".")[2] in _WORDS:
                is_head = name.endswith("lm_head")
                output = module(torch.eye(16)).T if is_head else module(torch.arange(40))
                found[name] = output[:40].double()
    return found


@pytest.mark.parametrize("case", _SHARED)
def test_words_that_modules_share_are_read_as_the_forward_pass_uses_them(case, tmp_path):
    """Each module against what it computes; a warning exactly where PEFT's merge computes something else."""
    kind, options, size, warned = _SHARED[case]
    torch.manual_seed(0)
    made = _MODELS[kind]()
    made.save_pretrained(tmp_path / "base")
    cls = type(made)
    model = cls.from_pretrained(tmp_path / "base")
    start = _computed(model)
    if size is not None:
        model.resize_token_embeddings(size)
    targets = {"target_modules": ["q_proj", "q"]} | options
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=7, **targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    runs = _computed(model.base_model.model)
    runs = {name.removesuffix(".base_layer"): matrix for name, matrix in runs.items()}
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert pairing.complete
    pairs = {pair.name: pair for pair in pairing.pairs if pair.name in start}
    moved = {name for name in start if not torch.equal(start[name], runs[name])}
    assert moved
    for name, pair in pairs.items():
        tuned = _tuned(pair)
        got = tuned.T if pair.kind == "embedding" else tuned
        torch.testing.assert_close(got, runs[name], rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(
            pair.base.load().double(), start[name].T if pair.kind == "embedding" else start[name]
        )
    # What moved without a pair of its own is the same parameter as one that has a pair.
    for name in moved - set(pairs):
        assert any(torch.equal(runs[name], runs[other]) for other in pairs), name
    merged = model.merge_and_unload(safe_merge=True)
    merged.save_pretrained(tmp_path / "merged")
    after = _computed(cls.from_pretrained(tmp_path / "merged"))
    differs = any((after[name] - runs[name]).norm() > 1e-3 for name in start)
    found = {finding.code for finding in pairing.findings if finding.severity == "warning"} - {"other-base"}
    assert (bool(found), found) == (differs, warned)


def test_peft_merges_a_tied_head_right_once_it_is_untied_and_only_then(tmp_path):
    """What the warning says."""
    model = _trained(_CASES["head"], tmp_path)
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    expected = next(_tuned(pair) for pair in pairing.pairs if pair.name == "lm_head")
    start = model.base_model.model.model.embed_tokens.weight.detach().clone()
    layer = model.base_model.model.lm_head.base_layer
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged.lm_head.weight.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.model.embed_tokens.weight, start)
    tied = _trained(_CASES["head"], tmp_path).merge_and_unload(safe_merge=True)
    assert not torch.equal(tied.model.embed_tokens.weight, start)


@pytest.mark.parametrize(
    ("told", "classes", "is_tied"),
    [
        (True, ["LlamaForCausalLM"], True),
        (False, ["LlamaForCausalLM"], False),
        (None, ["LlamaForCausalLM"], True),
        (None, ["GPT2LMHeadModel"], True),
        (None, ["LlamaModel"], False),
        (None, [], False),
        ("yes", ["LlamaForCausalLM"], False),
    ],
)
def test_a_head_that_may_have_been_left_behind_is_not_taken_for_the_embedding(
    told, classes, is_tied, tmp_path
):
    _trained(_CASES["head"], tmp_path)
    path = tmp_path / "base" / "config.json"
    config = {**json.loads(path.read_text()), "architectures": classes, "tie_word_embeddings": told}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert pairing.complete == is_tied
    assert ("lm_head" in {pair.name for pair in pairing.pairs}) == is_tied


def test_a_checkpoint_that_ties_has_no_place_for_a_head_of_its_own(tmp_path):
    _trained(_CASES["head"], tmp_path)
    found = survey(str(tmp_path / "base"), str(tmp_path / "adapter"), options=RunOptions(workers=0))
    with pytest.raises(UnsupportedFormat, match="lm_head as trained: the base ties it to its embedding"):
        check_mergeable(found.base, found.tuned, found.pairing)
