"""Which settings are compared, and which matrices and blocks they mean."""

import pytest
import torch
import transformers
from profiling_models import SIZES, bert_config, gpt2_config

from intruscope.errors import IntruscopeError, UsageError
from intruscope.profiling.candidates import candidates
from intruscope.profiling.heads import blocks_of, head_of, last_blocks, skeleton
from intruscope.profiling.records import ProfileSettings

LLAMA = transformers.LlamaConfig(vocab_size=60, intermediate_size=64, num_key_value_heads=4, **SIZES)


def model(cls=transformers.BertForMaskedLM, config=None):
    return skeleton(cls, config or bert_config())


def names(settings=None, given=None, **options):
    return [c.name for c in candidates(given or model(), settings or ProfileSettings(**options))]


def test_by_default_one_thing_at_a_time_is_changed_from_the_centre():
    assert names() == [
        "full", "full-again", "last-1",
        "lora-r8-all-linear", "lora-r8-all-linear-dropout0.1", "lora-r8-attention", "lora-r8-query-value",
        "lora-r1-all-linear", "lora-r64-all-linear", "melora-r8-all-linear",
    ]  # fmt: skip


def test_what_is_named_is_all_that_is_tried():
    assert names(methods=("lora",), ranks=(4,)) == ["full", "full-again", "lora-r4-all-linear"]
    assert names(methods=("full",)) == ["full", "full-again"]
    assert names(methods=("vera", "full", "oft"), last_layers=(1, 3)) == [
        "full", "full-again", "last-1", "last-3", "vera-r256-all-linear", "oft-all-linear",
    ]  # fmt: skip


def test_ranks_and_dropouts_go_to_those_that_have_them():
    found = candidates(
        model(), ProfileSettings(methods=("melora", "vera", "oft"), ranks=(2, 4), dropouts=(0.2,))
    )
    options = {c.name: c.options for c in found[2:]}
    assert list(options) == [
        "melora-r2-all-linear-dropout0.2", "melora-r4-all-linear-dropout0.2", "vera-r2-all-linear-dropout0.2",
        "vera-r4-all-linear-dropout0.2", "oft-all-linear-dropout0.2",
    ] or "rank" not in options["oft-all-linear"]  # fmt: skip
    assert options["melora-r4-all-linear-dropout0.2"]["rank"] == 4


def test_all_combinations_or_one_change_at_a_time():
    axes = {
        "methods": ("lora",),
        "ranks": (2, 4),
        "targets": ("attention", "all-linear"),
        "dropouts": (0.0, 0.1),
    }
    star = names(**axes)[2:]
    cross = names(**axes, every_combination=True)[2:]
    assert len(star) == 4 and len(cross) == 8 and set(star) < set(cross)
    assert star[0] == cross[0] == "lora-r2-attention"
    assert "lora-r4-all-linear-dropout0.1" in set(cross) - set(star)


@pytest.mark.parametrize(
    ("cls", "config", "attention", "query_value"),
    [
        (
            transformers.BertForMaskedLM,
            bert_config(),
            {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
            {"attention.self.query", "attention.self.value"},
        ),
        (
            transformers.LlamaForCausalLM,
            LLAMA,
            {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
            {"self_attn.q_proj", "self_attn.v_proj"},
        ),
        (transformers.GPT2LMHeadModel, gpt2_config(), {"attn.c_attn", "attn.c_proj"}, {"attn.c_attn"}),
    ],
    ids=["bert", "llama", "gpt2"],
)
def test_sets_of_targets_are_what_they_are_called(cls, config, attention, query_value):
    given = model(cls, config)
    blocks = blocks_of(given)
    assert len(blocks) == 3
    settings = ProfileSettings(methods=("lora",), targets=("attention", "query-value"))
    found = {c.target_set: c.targets for c in candidates(given, settings)[2:]}
    for name, leaves in (("attention", attention), ("query-value", query_value)):
        assert set(found[name]) == {f"{block}.{leaf}" for block in blocks for leaf in leaves}


def test_blocks_are_counted_from_the_input_and_the_last_are_the_last():
    assert last_blocks(model(), 2) == ("bert.encoder.layer.1", "bert.encoder.layer.2")
    assert last_blocks(model(transformers.GPT2LMHeadModel, gpt2_config()), 3) == (
        "transformer.h.0", "transformer.h.1", "transformer.h.2",
    )  # fmt: skip


def test_an_unknown_type_is_profiled_without_a_set_that_it_does_not_have():
    config = transformers.ModernBertConfig(
        vocab_size=60, intermediate_size=64, pad_token_id=0, **{**SIZES, "hidden_size": 64}
    )
    given = model(transformers.ModernBertForMaskedLM, config)
    assert "lora-r8-attention" in names(given=given) and "lora-r8-query-value" not in names(given=given)
    with pytest.raises(UsageError, match=r"query-value is not defined for this model.*--targets"):
        names(given=given, targets=("query-value",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("lorra",)}, "did you mean the method lora"),
        ({"methods": ("construct",)}, "cannot be trained"),
        ({"last_layers": (4,)}, "out of range: the model has 3 blocks"),
        ({"last_layers": (0,)}, "out of range: the model has 3 blocks"),
        ({"targets": ("querry",)}, "did you mean query"),
        ({"methods": ("full",), "ranks": (8,)}, "full fine-tuning alone"),
        ({"methods": ("oft",), "ranks": (8,)}, "--rank has no effect on oft"),
    ],
)
def test_bad_requests_say_what_was_expected(options, words):
    with pytest.raises(IntruscopeError) as caught:
        names(**options)
    assert words in str(caught.value) and caught.value.exit_code == 2


def test_the_head_is_the_base_s_unless_another_is_asked_for():
    masked, classifier, causal = bert_config(), bert_config(), gpt2_config()
    masked.architectures, classifier.architectures = ["BertForMaskedLM"], ["BertForSequenceClassification"]
    kinds = [head_of(c, "auto", file="x")[1] for c in (masked, classifier, causal)]
    assert kinds == ["masked", "classifier", "causal"]
    assert head_of(masked, "classifier", file="x")[0] is transformers.BertForSequenceClassification
    assert head_of(classifier, "language", file="x")[0] is transformers.BertForMaskedLM


def test_a_skeleton_takes_no_memory():
    given = skeleton(transformers.LlamaForCausalLM, transformers.LlamaConfig())  # 7B
    assert {p.device for p in given.parameters()} == {torch.device("meta")}
    assert sum(p.numel() for p in given.parameters()) == 6_738_415_616
