"""Pairs and the coverage ledger of two checkpoints, from their headers."""

from __future__ import annotations

import pickle

import pytest
import torch
from weights_models import BLOCK, LLAMA

from intruscope.weights.layout import base_matrices
from intruscope.weights.pairing import pair_checkpoints
from intruscope.weights.source import open_model


def _prefixed(prefix, tensors=BLOCK):
    return {prefix + name: shape for name, shape in tensors.items()}


def _ledger_is_whole(pairing, base, tuned):
    """Every tensor of both sides once, and every skipped one with a reason."""
    for origin, source in (("base", base), ("tuned", tuned)):
        listed = [entry.tensor for entry in pairing.coverage if entry.origin == origin]
        assert sorted(listed) == sorted(source.tensors)
    assert all(entry.reason for entry in pairing.coverage if entry.status == "skipped")
    in_ledger = {name for e in pairing.coverage if e.origin == "base" for name in e.matrices}
    assert in_ledger == {pair.name for pair in pairing.pairs}


def test_pairs_hold_both_sides_in_their_own_dtype(model):
    base = model("base", BLOCK)
    tuned = model("tuned", {name: torch.full(shape, 0.5).half() for name, shape in BLOCK.items()})
    pairing = pickle.loads(pickle.dumps(pair_checkpoints(base, tuned)))
    _ledger_is_whole(pairing, base, tuned)
    assert pairing.complete
    assert pairing.findings == ()
    by_name = {pair.name: pair for pair in pairing.pairs}
    assert set(by_name) == {"embed_tokens", "layers.0.self_attn.q_proj", "layers.0.mlp.down_proj"}
    down = by_name["layers.0.mlp.down_proj"]
    assert (down.kind, down.layer, down.scope) == ("down", 0, "paper")
    base_OI = down.base.load()
    tuned_OI = down.update.load(base_OI).tuned_OI
    assert torch.equal(base_OI, base.tensors["layers.0.mlp.down_proj.weight"].read())
    assert torch.equal(tuned_OI, torch.full((4, 6), 0.5).half())
    assert down.estimated_bytes == 4 * 6 * (4 + 2)


@pytest.mark.parametrize(
    ("base_prefix", "tuned_prefix"),
    [("", "model."), ("bert.", ""), ("", "base_model.model.model."), ("model.", "transformer.")],
)
def test_one_prefix_of_a_side_is_taken_off_and_said(model, base_prefix, tuned_prefix):
    base, tuned = model("base", _prefixed(base_prefix)), model("tuned", _prefixed(tuned_prefix))
    pairing = pair_checkpoints(base, tuned)
    _ledger_is_whole(pairing, base, tuned)
    assert len(pairing.pairs) == 3
    assert pairing.complete
    (finding,) = pairing.findings
    assert finding.code == "prefix"
    for prefix in (base_prefix, tuned_prefix):
        assert prefix in finding.message


def test_nothing_in_common_shows_the_names_of_both(model, refused):
    base = model("base", _prefixed("model."))
    tuned = model("tuned", {"vision.blocks.0.proj.weight": (4, 4)})
    error = refused(lambda: pair_checkpoints(base, tuned), 4, says="no tensor name matches the base")
    assert "vision.blocks" in error.fact
    assert "model.layers" in error.fact


def test_another_shape_names_the_pair(model, refused):
    base = model("base", BLOCK)
    tuned = model("tuned", {**BLOCK, "layers.0.mlp.down_proj.weight": (6, 4)})
    refused(
        lambda: pair_checkpoints(base, tuned),
        4,
        says="the tensor has shape [6, 4], but [4, 6] in the base",
        tensor="layers.0.mlp.down_proj.weight",
    )


def test_a_resized_vocabulary_is_compared_over_the_common_words_and_said(model):
    words = torch.randn(13, 4, generator=torch.Generator().manual_seed(1))
    base = model("base", {**BLOCK, "lm_head.weight": (10, 4)})
    tuned = model("tuned", {**BLOCK, "embed_tokens.weight": words, "lm_head.weight": words + 1})
    pairing = pair_checkpoints(base, tuned)
    _ledger_is_whole(pairing, base, tuned)
    by_name = {pair.name: pair for pair in pairing.pairs}
    embedding, head = by_name["embed_tokens"], by_name["lm_head"]
    assert embedding.base.shape == (4, 10)
    assert torch.equal(embedding.update.load(embedding.base.load()).tuned_OI, words[:10].T)
    assert torch.equal(head.update.load(head.base.load()).tuned_OI, (words + 1)[:10])
    assert {finding.code for finding in pairing.findings} == {"resized"}
    reasons = {entry.reason for entry in pairing.coverage if entry.tensor == "embed_tokens.weight"}
    assert reasons == {"resized from 10 to 13 rows; the first 10 are compared"}


def test_a_missing_layer_is_a_gap(model):
    base = model("base", {**BLOCK, "layers.1.mlp.up_proj.weight": (6, 4)})
    tuned = model("tuned", BLOCK)
    pairing = pair_checkpoints(base, tuned)
    _ledger_is_whole(pairing, base, tuned)
    assert not pairing.complete
    reasons = {entry.tensor: entry.reason for entry in pairing.coverage if entry.status == "skipped"}
    assert reasons["layers.1.mlp.up_proj.weight"] == "not in the tuned model"
    assert [entry.tensor for entry in pairing.coverage if entry.gap] == ["layers.1.mlp.up_proj.weight"]
    assert [finding.code for finding in pairing.findings] == ["incomplete-coverage"]


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6)])
def test_integers_under_a_weights_name_are_a_gap_on_both_sides(model, shape):
    """A packing that neither config nor names tell of must not pass as compared."""
    packed = {**BLOCK, "layers.0.mlp.down_proj.weight": torch.ones(shape, dtype=torch.int32)}
    pairing = pair_checkpoints(model("base", packed), model("tuned", packed))
    assert not pairing.complete
    gaps = [(entry.origin, entry.tensor) for entry in pairing.coverage if entry.gap]
    assert gaps == [(side, "layers.0.mlp.down_proj.weight") for side in ("base", "tuned")]
    assert all("I32 numbers under a weight's name" in e.reason for e in pairing.coverage if e.gap)
    beside = {"layers.0.attn.bias": torch.ones(4, 4).bool(), "layers.0.steps.weight": torch.ones(4).int()}
    whole = pair_checkpoints(model("b", {**BLOCK, **beside}), model("t", {**BLOCK, **beside}))
    assert whole.complete  # a mask, and a vector of counts


def test_quantised_weights_leave_the_coverage_incomplete(model):
    f8 = torch.zeros(4, 6).to(torch.float8_e4m3fn)
    base = model("base", BLOCK)
    tuned = model("tuned", {**BLOCK, "layers.0.mlp.down_proj.weight": f8})
    pairing = pair_checkpoints(base, tuned)
    _ledger_is_whole(pairing, base, tuned)
    assert not pairing.complete
    reasons = {entry.origin: entry.reason for entry in pairing.coverage if entry.gap}
    assert reasons["base"] == "the tensor in the tuned model is not read"
    assert "F8_E4M3" in reasons["tuned"]
    packed = {
        "layers.0.self_attn.q_proj.qweight": torch.zeros(4, 4, dtype=torch.int32),
        "layers.0.self_attn.q_proj.scales": torch.ones(4, 4),
        "layers.0.mlp.down_proj.weight": (4, 6),
    }
    gptq = model("gptq", packed, {**LLAMA, "quantization_config": {"quant_method": "gptq"}})
    listing = base_matrices(gptq)
    assert listing.gaps == {"layers.0.self_attn.q_proj.qweight"}
    assert list(listing.matrices) == ["layers.0.mlp.down_proj.weight"]
    assert any("gptq" in entry.reason for entry in listing.skipped)
    assert not pair_checkpoints(base, gptq).complete


_U8, _I32, _SCALES = torch.zeros(4, 4).byte(), torch.zeros(4, 4).int(), torch.ones(4, 4)
_Q = "layers.0.self_attn.q_proj"
QUANTISED = {
    "bitsandbytes": (
        {f"{_Q}.weight": _U8, f"{_Q}.weight.absmax": (4,), f"{_Q}.weight.quant_map": (16,)},
        "weight",
    ),
    "int8": ({f"{_Q}.weight": _U8.char(), f"{_Q}.SCB": (4,)}, "weight"),
    "awq": ({f"{_Q}.qweight": _I32, f"{_Q}.qzeros": _I32.clone(), f"{_Q}.scales": _SCALES}, "qweight"),
    "mxfp4": ({f"{_Q}_blocks": _U8, f"{_Q}_scales": _U8.clone()}, "_blocks"),
    "fp8": (
        {f"{_Q}.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), f"{_Q}.weight_scale_inv": _SCALES},
        "weight",
    ),
    "compressed-tensors": ({f"{_Q}.weight_packed": _I32, f"{_Q}.weight_scale": _SCALES}, "weight_packed"),
}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("method", QUANTISED)
def test_each_quantised_format_is_a_gap_by_name_and_its_scales_are_no_matrices(model, method, told):
    tensors, leaf = QUANTISED[method]
    config = {**LLAMA, "quantization_config": {"quant_method": method}} if told else LLAMA
    source = model("packed", {**tensors, "layers.0.mlp.down_proj.weight": (4, 6)}, config)
    listing = base_matrices(source)
    assert {name for name in listing.gaps if name.endswith(leaf)} == listing.gaps
    assert len(listing.gaps) == 1
    assert list(listing.matrices) == ["layers.0.mlp.down_proj.weight"]
    (reason,) = [entry.reason for entry in listing.skipped if entry.tensor in listing.gaps]
    assert "quantised" in reason
    assert not told or method in reason
    assert not pair_checkpoints(model("base", BLOCK), source).complete


def test_convolutions_are_flattened_and_vectors_skipped(model):
    source = model(
        "conv", {"conv1.weight": (5, 3, 2, 2), "layers.0.conv1d.weight": (4, 1, 3), "b.bias": (5,)}
    )
    listing = base_matrices(source)
    (conv,) = listing.matrices["conv1.weight"]
    assert (conv.kind, conv.scope, conv.shape) == ("conv", "other", (5, 12))
    assert torch.equal(conv.load(), source.tensors["conv1.weight"].read().flatten(1))
    assert listing.matrices["layers.0.conv1d.weight"][0].shape == (4, 3)
    assert [entry.reason for entry in listing.skipped] == ["a vector, not a matrix"]


def test_a_fused_tensor_that_the_config_does_not_explain_stays_whole_with_a_note(model):
    fused = {"h.0.attn.query_key_value.weight": (12, 4)}
    for config in (
        {"model_type": "unheard_of"},
        {"model_type": "bloom", "n_head": 5},
        {"model_type": "bloom"},
    ):
        listing = base_matrices(model(f"m{len(str(config))}", fused, config))
        (view,) = listing.matrices["h.0.attn.query_key_value.weight"]
        assert (view.kind, view.shape) == ("qkv", (12, 4))
        assert "not split" in listing.notes["h.0.attn.query_key_value.weight"]
        assert not listing.gaps


def test_experts_whose_axes_the_config_does_not_explain_are_a_gap(model):
    experts = {"layers.0.mlp.experts.gate_up_proj": (2, 4, 4)}
    listing = base_matrices(model("m", experts, {"model_type": "unheard_of", "hidden_size": 4}))
    assert listing.gaps == set(experts)
    assert "which axis" in listing.skipped[0].reason


def test_bare_parameters_of_a_block_are_no_linear_layers(model):
    tensors = {"layers.0.mixer.A_log": (6, 4), "layers.0.rel_attn.q": (4, 2, 2), "cls_token": (1, 1, 4)}
    listing = base_matrices(model("m", tensors))
    (view,) = listing.matrices["layers.0.mixer.A_log"]
    assert (view.kind, view.scope) == ("other", "other")
    assert listing.gaps == {"layers.0.rel_attn.q"}  # of a block: perhaps a weight in a form unknown here


def test_hostile_sizes_in_a_config_cost_nothing(model):
    config = {"model_type": "bloom", "n_head": 10**9, "num_hidden_layers": 10**9, "hidden_size": -1}
    listing = base_matrices(model("m", {"h.0.attn.query_key_value.weight": (12, 4)}, config))
    assert len(listing.matrices) == 1


def test_a_gpt2_file_without_config_is_still_transposed(model):
    tensors = {"h.0.attn.c_attn.weight": (4, 12), "h.0.mlp.c_fc.weight": (4, 16)}
    listing = base_matrices(model("m", tensors, None))
    assert [view.shape for view in listing.matrices["h.0.attn.c_attn.weight"]] == [(4, 4)] * 3
    assert listing.matrices["h.0.mlp.c_fc.weight"][0].shape == (16, 4)


@pytest.mark.real
def test_minilm_against_its_masked_language_model(real_models):
    base, tuned = open_model(real_models / "minilm"), open_model(real_models / "minilm-mlm")
    pairing = pair_checkpoints(base, tuned)
    _ledger_is_whole(pairing, base, tuned)
    assert pairing.complete
    assert [finding.code for finding in pairing.findings] == ["prefix", "new-head", "dropped-head"]
    told = "(a head for another task: the tuned model is a BertForMaskedLM, the base a BertModel)"
    assert all(finding.message.endswith(told) for finding in pairing.findings[1:])
    paper = [pair for pair in pairing.pairs if pair.scope == "paper"]
    assert len(paper) == 36
    assert {pair.kind for pair in paper} == {"q", "k", "v", "o", "up", "down"}
    for pair in pairing.pairs:
        base_OI = pair.base.load()
        tuned_OI = pair.update.load(base_OI).tuned_OI
        assert base_OI.shape == tuned_OI.shape == pair.base.shape
        assert (base_OI.dtype, tuned_OI.dtype) == (torch.float32, torch.float16)
        if pair.scope == "other":
            continue  # the tied head taught the embeddings anew
        change = (tuned_OI.float() - base_OI).norm() / base_OI.norm()
        assert 0 < change < 0.5, pair.name  # trained further, not another model
