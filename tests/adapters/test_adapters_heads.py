"""A head that only the adapter has: what explains it, and what stays a gap."""

from __future__ import annotations

import json
import time

import peft_models
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
_BERT = transformers.BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=4, vocab_size=40, intermediate_size=24,
    max_position_embeddings=16,
)  # fmt: skip
_PREFIX = "base_model.model."
_Q = "model.layers.0.self_attn.q_proj"


def _verdict(pairing):
    gaps = {entry.tensor for entry in pairing.coverage if entry.gap}
    assert pairing.complete == (not gaps)
    return gaps, {entry.tensor for entry in pairing.coverage if entry.head == "new"}


@pytest.mark.parametrize(
    ("task", "make", "head"),
    [
        ("SEQ_CLS", transformers.AutoModelForSequenceClassification, "classifier"),
        ("TOKEN_CLS", transformers.AutoModelForTokenClassification, "classifier"),
        ("QUESTION_ANS", transformers.AutoModelForQuestionAnswering, "qa_outputs"),
    ],
)
def test_pefts_own_classifier_over_a_language_model_is_complete(task, make, head, tmp_path):
    torch.manual_seed(0)
    transformers.BertForMaskedLM(_BERT).save_pretrained(tmp_path / "base")
    model = get_peft_model(make.from_config(_BERT), LoraConfig(task_type=task, r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path / "adapter")
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert len(pairing.pairs) == 1
    assert _verdict(pairing) == (set(), {f"{_PREFIX}{head}.weight"})
    (finding,) = [finding for finding in pairing.findings if finding.code == "new-head"]
    assert finding.severity == "info"
    assert f"{_PREFIX}{head}.weight (2, 16) (a head that modules_to_save names)" in finding.message


def test_factors_on_a_layer_that_nobody_stores_are_warned_of(tmp_path):
    """With all-linear PEFT adapts a pooler that the base has not, and stores only the factors."""
    torch.manual_seed(0)
    transformers.BertForMaskedLM(_BERT).save_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    model = get_peft_model(transformers.BertForSequenceClassification(_BERT), config)
    model.save_pretrained(tmp_path / "adapter")
    assert not any("pooler" in key and "lora" not in key for key in load_file(
        tmp_path / "adapter" / "adapter_model.safetensors"
    ))  # fmt: skip
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    gaps, heads = _verdict(pairing)
    assert not gaps
    pooler = f"{_PREFIX}bert.pooler.dense.lora"
    assert heads == {f"{pooler}_A.weight", f"{pooler}_B.weight", f"{_PREFIX}classifier.weight"}
    (warning,) = [finding for finding in pairing.findings if finding.severity == "warning"]
    assert warning.code == "unsaved-head"
    assert warning.message.startswith("bert.pooler.dense has factors")


@pytest.fixture
def pair(tmp_path, write_adapter):
    """Pair a small llama with an adapter on one query and further tensors."""
    torch.manual_seed(0)
    peft_models.llama().save_pretrained(tmp_path / "base")

    def make(more, **config):
        factors = {
            f"{_PREFIX}{_Q}.lora_A.weight": torch.randn(2, 16),
            f"{_PREFIX}{_Q}.lora_B.weight": torch.randn(16, 2),
        }
        folder = write_adapter({**factors, **more}, **config)
        return pair_adapter(open_model(tmp_path / "base"), open_adapter(folder))

    return make


_HEAD = {f"{_PREFIX}score.weight": torch.ones(2, 16)}
_NESTED = {
    f"{_PREFIX}score.dense.weight": torch.ones(16, 16),
    f"{_PREFIX}score.out.weight": torch.ones(2, 16),
}


@pytest.mark.parametrize("head", [_HEAD, _NESTED], ids=["one", "nested"])
def test_a_head_is_explained_by_the_config_and_by_nothing_else(head, pair):
    assert _verdict(pair(head)) == (set(head), set())
    assert _verdict(pair(head, task_type="CAUSAL_LM")) == (set(head), set())
    assert _verdict(pair(head, modules_to_save=["classifier", ""])) == (set(head), set())
    assert _verdict(pair(head, modules_to_save=["score"])) == (set(), set(head))
    assert _verdict(pair(head, task_type="SEQ_CLS")) == (set(), set(head))
    assert _verdict(pair(head, task_type=["SEQ_CLS"])) == (set(head), set())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.7.self_attn.q_proj",
        "model.layers.0.score",
        "model.embed_positions",
        "score.layers.0",
        "model.layers.score",
    ],
)
def test_nothing_of_the_body_is_explained(name, pair):
    """A layer that the base lacks means another base, whatever the config calls it."""
    saved = {f"{_PREFIX}{name}.weight": torch.ones(16, 16)}
    told = {"modules_to_save": [name, "score", "q_proj"], "task_type": "SEQ_CLS"}
    assert _verdict(pair(saved, **told)) == (set(saved), set())
    factors = {f"{_PREFIX}{name}.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 16)), ("B", (16, 2)))}
    pairing = pair(factors, **told)
    assert _verdict(pairing) == (set(factors), set())
    assert "unsaved-head" not in {finding.code for finding in pairing.findings}


def test_another_prefix_of_the_adapter_does_not_make_its_body_a_head(tmp_path, write_adapter):
    """The base is a bare body; names of the adapter's carry its class's prefix."""
    torch.manual_seed(0)
    peft_models.llama().model.save_pretrained(tmp_path / "base")
    assert "layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "base" / "model.safetensors")
    factors = {
        f"{_PREFIX}{_Q}.lora_A.weight": torch.randn(2, 16),
        f"{_PREFIX}{_Q}.lora_B.weight": torch.randn(16, 2),
    }
    lost = f"{_PREFIX}model.layers.9.self_attn.q_proj.weight"
    folder = write_adapter({**factors, **_HEAD, lost: torch.ones(16, 16)}, task_type="SEQ_CLS")
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(folder))
    assert len(pairing.pairs) == 1
    assert _verdict(pairing) == ({lost}, set(_HEAD))


def test_very_many_heads_and_names_take_no_time(pair):
    """Each is looked up, not compared with each."""
    heads = {f"{_PREFIX}x{i}.output.weight": torch.ones(1, 1) for i in range(3_000)}
    started = time.process_time()
    pairing = pair(heads, modules_to_save=[f"x{i}.output" for i in range(3_000)] * 10)
    assert time.process_time() - started < 20
    assert _verdict(pairing) == (set(), set(heads))
    (finding,) = [finding for finding in pairing.findings if finding.code == "new-head"]
    assert "and 2994 more" in finding.message


def test_a_head_of_another_size_is_new(tmp_path, write_adapter):
    base = {f"{_Q}.weight": torch.randn(16, 16), "score.weight": torch.ones(3, 16)}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(write_adapter(_HEAD)))
    assert _verdict(pairing) == (set(), set(_HEAD))
    assert "[2, 16] in the adapter, [3, 16] in the base" in pairing.findings[0].message
