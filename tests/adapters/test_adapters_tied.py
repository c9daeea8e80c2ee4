"""Adapters on words whose embedding and head are one parameter, against what PEFT runs and merges."""

from __future__ import annotations

import json

import peft_models
import pytest
import torch
from peft import LoraConfig, get_peft_model

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UnsupportedFormat
from intruscope.repair.placing import check_mergeable
from intruscope.repair.survey import survey
from intruscope.spectra.scan import RunOptions
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.source import open_model

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
        check_mergeable(found)
