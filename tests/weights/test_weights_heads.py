"""Heads that one of two checkpoints has: explained by the files, or a gap; what may not hide behind one."""

from __future__ import annotations

import pytest
import torch
from weights_models import BLOCK, LLAMA

from intruscope.weights.heads import Body
from intruscope.weights.pairing import pair_checkpoints

MODEL = {f"model.{name}": shape for name, shape in BLOCK.items()}
WORDS = {"lm_head.weight": (10, 4)}
SCORE = {"score.weight": (3, 4)}
LM = {**LLAMA, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
CLS = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}


def _verdict(pairing):
    """Complete or not, the codes found, and the tensors that are gaps."""
    gaps = {entry.tensor for entry in pairing.coverage if entry.gap}
    assert pairing.complete == (not gaps)
    assert ("incomplete-coverage" in {f.code for f in pairing.findings}) == bool(gaps)
    heads = {(entry.tensor, entry.head) for entry in pairing.coverage if entry.head}
    return gaps, heads


def test_a_classifier_of_a_language_model_is_compared_and_both_heads_are_told(model):
    base, tuned = model("base", {**MODEL, **WORDS}, LM), model("tuned", {**MODEL, **SCORE}, CLS)
    pairing = pair_checkpoints(base, tuned)
    assert _verdict(pairing) == (set(), {("score.weight", "new"), ("lm_head.weight", "dropped")})
    new, dropped = pairing.findings
    classes = "the tuned model is a LlamaForSequenceClassification, the base a LlamaForCausalLM"
    told = f"(a head for another task: {classes})"
    assert (new.code, new.severity) == ("new-head", "info")
    assert new.message == f"new head, not compared: score.weight (3, 4) {told}"
    assert (dropped.code, dropped.severity) == ("dropped-head", "info")
    assert (
        dropped.message
        == f"head of the base that the tuned model does not have: lm_head.weight (10, 4) {told}"
    )


@pytest.mark.parametrize("config", [None, LLAMA, LM], ids=["no-config", "no-class", "the-same-class"])
def test_a_new_head_that_nothing_explains_is_a_gap(model, config):
    """A list of names that sound like heads would let it pass."""
    base, tuned = model("base", {**MODEL, **WORDS}, LM), model("tuned", {**MODEL, **WORDS, **SCORE}, config)
    assert _verdict(pair_checkpoints(base, tuned)) == ({"score.weight"}, set())


def test_a_class_the_base_does_not_name_explains_a_head(model):
    base, tuned = model("base", MODEL, None), model("tuned", {**MODEL, **SCORE}, CLS)
    pairing = pair_checkpoints(base, tuned)
    assert _verdict(pairing) == (set(), {("score.weight", "new")})
    assert pairing.findings[0].message.endswith(
        "(a head for another task: the tuned model is a LlamaForSequenceClassification)"
    )


@pytest.mark.parametrize("name", ["classifier.dense.weight", "model.pooler.weight", "score.weight"])
def test_a_body_matrix_under_a_heads_name_hides_nothing(model, name):
    """The base's own then has no counterpart, whatever the config says."""
    renamed = dict(MODEL)
    renamed[name] = renamed.pop("model.layers.0.mlp.down_proj.weight")
    pairing = pair_checkpoints(model("base", {**MODEL, **WORDS}, LM), model("tuned", renamed, CLS))
    gaps, _ = _verdict(pairing)
    assert gaps == {"model.layers.0.mlp.down_proj.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.classifier.weight",
        "model.layers.1.mlp.down_proj.weight",
        "classifier.layers.0.weight",
        "model.embed_positions.weight",
        "model.layers.score.weight",
        "model.embed_tokens.score.weight",
        "score.embed_tokens.weight",
    ],
)
def test_what_lies_in_the_body_is_no_head(model, name):
    more = {**MODEL, name: (4, 4)}
    assert _verdict(pair_checkpoints(model("base", MODEL, LM), model("tuned", more, CLS))) == ({name}, set())
    assert _verdict(pair_checkpoints(model("b2", more, LM), model("t2", MODEL, CLS))) == ({name}, set())


def test_the_words_head_may_be_tied_but_not_lost(model):
    """A head that one side does not store is its embedding there: what the forward pass computes with."""
    whole, without = {**MODEL, **WORDS}, MODEL
    tied = {**LM, "tie_word_embeddings": True}
    assert _verdict(pair_checkpoints(model("b", whole, LM), model("t", without, LM))) == (set(WORDS), set())
    for number, (before, after) in enumerate(
        [((whole, LM), (without, tied)), ((without, tied), (whole, LM))]
    ):
        base, tuned = model(f"base{number}", *before), model(f"tuned{number}", *after)
        pairing = pair_checkpoints(base, tuned)
        assert _verdict(pairing) == (set(), set())
        (head,) = [pair for pair in pairing.pairs if pair.name == "lm_head"]
        sides = [source.tensors.get("lm_head.weight") for source in (base, tuned)]
        sides = [
            (head or source.tensors["model.embed_tokens.weight"]).read()
            for head, source in zip(sides, (base, tuned), strict=True)
        ]
        assert torch.equal(head.base.load(), sides[0])
        assert torch.equal(head.update.load(sides[0]).tuned_OI, sides[1])
        assert not torch.equal(*sides)
        (finding,) = pairing.findings
        assert (finding.code, finding.severity) == ("tied-differently", "info")
        assert finding.message.startswith(f"lm_head: the {('tuned model', 'base')[number]} computes it with")
        lines = {entry.tensor: entry.matrices for entry in pairing.coverage if entry.tensor in WORDS}
        assert lines == {"lm_head.weight": ("lm_head",)}
        origins = {entry.origin for entry in pairing.coverage if "lm_head" in entry.matrices}
        assert origins == {"base", "tuned"}
    other = {**MODEL, "lm_head.weight": (11, 4)}  # of no embedding
    assert _verdict(pair_checkpoints(model("b4", without, tied), model("t4", other, LM)))[0] == set(WORDS)


def test_a_pooler_that_goes_when_a_language_model_is_saved_anew_is_told(asked_here, model):
    pooled = {**MODEL, "model.pooler.dense.weight": (4, 4)}
    pairing = pair_checkpoints(model("base", pooled, LM), model("tuned", MODEL, LM))
    assert _verdict(pairing) == (set(), {("model.pooler.dense.weight", "dropped")})
    # The other way round it is new, and nothing says why.
    assert _verdict(pair_checkpoints(model("b", MODEL, LM), model("t", pooled, LM)))[0] == {
        "model.pooler.dense.weight"
    }
    # What has no head's name is missed.
    bridged = {**MODEL, "model.bridge.weight": (4, 4)}
    assert _verdict(pair_checkpoints(model("b2", bridged, LM), model("t2", MODEL, LM)))[0] == {
        "model.bridge.weight"
    }


def test_a_head_of_another_size_is_new_and_the_old_one_dropped(model):
    base = model("base", {**MODEL, "score.weight": (2, 4)}, CLS)
    pairing = pair_checkpoints(base, model("tuned", {**MODEL, **SCORE}, CLS))
    assert _verdict(pairing) == (set(), {("score.weight", "new"), ("score.weight", "dropped")})
    assert "[2, 4] in the base, [3, 4] in the tuned model" in pairing.findings[0].message


def test_a_heads_name_in_the_body_does_not_excuse_another_size(model, refused):
    name = "model.layers.decoder.project.weight"  # "decoder" is a head's name where it stands alone
    base, tuned = model("base", {**MODEL, name: (4, 4)}), model("tuned", {**MODEL, name: (5, 4)})
    refused(lambda: pair_checkpoints(base, tuned), 4, says="has shape [5, 4]", tensor=name)


def test_many_heads_take_one_line(model):
    heads = {f"classifier.{letter}.weight": (2, 4) for letter in "abcdefgh"}
    pairing = pair_checkpoints(model("base", MODEL, LM), model("tuned", {**MODEL, **heads}, CLS))
    (finding,) = pairing.findings
    assert "classifier.f.weight (2, 4) and 2 more (" in finding.message
    assert "classifier.g" not in finding.message


def test_a_bodys_root_is_the_deepest_module_that_holds_it():
    blocks = ["bert.encoder.layer.0.q", "bert.encoder.layer.1.q"]
    whole = Body.of([*blocks, "bert.embeddings.word_embeddings.weight", "classifier.weight"])
    assert (whole.root, whole.parts) == (("bert",), {"encoder", "embeddings"})
    assert whole.holds("bert.encoder.embedding_hidden_mapping_in")
    assert not whole.holds("bert.pooler.dense")
    assert not whole.holds("bert")
    assert not whole.holds("classifier")
    bare = Body.of(["h.0.attn.c_attn", "wte"])
    assert (bare.root, bare.parts) == ((), {"h", "wte"})
    nothing = Body.of(["classifier.weight"])
    assert nothing.holds("classifier")
