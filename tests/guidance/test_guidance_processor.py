"""The processor in transformers' own ``generate``, against both models alone and against a naive mixture."""

import copy
import gc
import math

import pytest
import torch
import transformers
from guidance_models import TARGETS, adapted, batch, generate, next_log_probs
from peft import PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from intruscope.errors import ShapeMismatch, UnsupportedFormat, UsageError
from intruscope.forgetting.guided import mixed
from intruscope.guidance import AdapterGuidance

pytestmark = pytest.mark.filterwarnings("ignore")
WAYS = {"greedy": {}, "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 3}}
ADAPTERS = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),  # absolute positions, which padding moves
    "dora": ("llama", {"use_dora": True}),
    "saved": ("llama", {"modules_to_save": ["lm_head"]}),
    "tokens": ("llama", {"trainable_token_indices": [3, 40]}),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_ends_are_the_two_models_token_for_token(adapter, models):
    name, options = ADAPTERS[adapter]
    language = models(name)
    base, tuned = language.model, adapted(language, name, **options)
    ids, mask = batch(language)
    for way in WAYS.values():
        before, after = generate(base, ids, mask, **way), generate(tuned, ids, mask, **way)
        assert not torch.equal(before, after)
        for gamma, expected in ((0.0, before), (1.0, after)):
            for processor in (AdapterGuidance(tuned, gamma), AdapterGuidance(tuned, gamma, base=base)):
                assert torch.equal(generate(tuned, ids, mask, processors=[processor], **way), expected)
        between = generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.5)], **way)
        assert not torch.equal(between, before)
        assert not torch.equal(between, after)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("gamma", [0.4, 1.7])
def test_every_step_is_the_mixture_of_both_models_alone(name, gamma, models):
    """Batched, left-padded and cached, against one row at a time without padding or cache."""
    language = models(name)
    base, tuned = language.model, adapted(language, name)
    ids, mask = batch(language)
    found = generate(
        tuned, ids, mask, processors=[AdapterGuidance(tuned, gamma)],
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for row in range(len(ids)):
        tokens = ids[row][mask[row] == 1]
        for step, scores in enumerate(found.scores):
            before, after = next_log_probs(base, tokens), next_log_probs(tuned, tokens)
            expected = (before + gamma * (after - before)).log_softmax(-1)
            got = scores[row].double().log_softmax(-1)
            assert (got - expected).abs().max() < 1e-4
            assert (got - after).abs().max() > 1e-2
            tokens = torch.cat([tokens, found.sequences[row, ids.shape[1] + step][None]])


def test_a_zero_adapter_is_the_base_at_any_gamma(models):
    language = models("llama")
    tuned = adapted(language, "llama", size=0.0)
    ids, mask = batch(language)
    expected = generate(language.model, ids, mask)
    for gamma in (0.3, 3.0):
        assert torch.equal(generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, gamma)]), expected)


def test_on_the_head_alone_guidance_is_scaling_the_adapter_and_elsewhere_it_is_not(models):
    language = models("llama")
    ids, mask = batch(language)
    differences = {}
    for target in ("lm_head", "down_proj"):
        tuned = adapted(language, "llama", target_modules=[target])
        options = {"tokens": 1, "return_dict_in_generate": True, "output_scores": True}
        guided = generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.3)], **options)
        for module in tuned.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] *= 0.3
        scaled = generate(tuned, ids, mask, **options)
        (got,), (expected,) = guided.scores, scaled.scores
        differences[target] = float((got.log_softmax(-1) - expected.log_softmax(-1)).abs().max())
    assert differences["lm_head"] < 1e-5
    assert differences["down_proj"] > 1e-2


def test_the_derivative_by_gamma_is_the_difference_minus_its_mean():
    generator = torch.Generator().manual_seed(0)
    base, tuned = torch.randn(2, 4, 30, generator=generator, dtype=torch.float64)
    for gamma in (0.3, 1.0, 2.5):
        higher, here, lower = (
            mixed(base, tuned, gamma + step).log_softmax(-1) for step in (1e-6, 0.0, -1e-6)
        )
        difference = tuned - base
        expected = difference - (here.exp() * difference).sum(-1, keepdim=True)
        assert torch.allclose((higher - lower) / 2e-6, expected, atol=1e-7)


def test_what_one_model_rules_out_stays_ruled_out():
    base = torch.tensor([0.0, -math.inf, 1.0, -math.inf])
    tuned = torch.tensor([0.5, 0.0, -math.inf, -math.inf])
    for gamma in (0.5, 2.0):
        assert mixed(base, tuned, gamma).tolist() == [0.5 * gamma, *[-math.inf] * 3]
    assert mixed(base, tuned, 0.0) is base
    assert mixed(base, tuned, 1.0) is tuned
    assert mixed(torch.tensor([math.nan]), torch.tensor([0.0]), 0.5).isnan().all()  # a fault is not hidden


def test_plausibility_keeps_what_the_tuned_model_finds_probable(models):
    language = models("llama")
    tuned = adapted(language, "llama")
    ids, mask = batch(language)
    options = {"tokens": 1, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for gamma, is_cut in ((2.0, True), (0.5, False)):  # below 1, nothing is amplified
        processor = AdapterGuidance(tuned, gamma, plausibility=0.5)
        found = generate(tuned, ids, mask, processors=[processor], **options)
        (scores,), (logits,) = found.scores, found.logits
        probabilities = logits.softmax(-1)
        keeps = probabilities >= 0.5 * probabilities.amax(-1, keepdim=True)
        assert 0 < keeps.sum() < keeps.numel()
        assert torch.equal(scores > -math.inf, keeps if is_cut else torch.ones_like(keeps))


def test_several_sequences_per_prompt(models):
    language = models("gpt2")
    tuned = adapted(language, "gpt2")
    ids, mask = batch(language)
    one = generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.5)])
    two = generate(
        tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.5)],
        do_sample=True, top_k=1, num_return_sequences=2,
    )  # fmt: skip
    assert torch.equal(two, one.repeat_interleave(2, 0))


class Uncached(torch.nn.Module):
    """A base of any other kind: it takes tokens and a mask, and holds no cache."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.calls = model, model.config, []

    def forward(self, input_ids, attention_mask, position_ids):
        self.calls.append(input_ids.shape[1])
        return self.model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )


def test_the_cache_changes_nothing_and_is_fed_new_tokens_only(models):
    language = models("gpt2")
    tuned, uncached, fed = adapted(language, "gpt2"), Uncached(language.model), []
    ids, mask = batch(language)
    expected = generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.5, base=uncached)])
    assert uncached.calls == list(range(11, 17))
    hook = language.model.register_forward_hook(
        lambda _module, _arguments, named, _output: fed.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    processor = AdapterGuidance(tuned, 0.5, base=language.model)
    assert torch.equal(generate(tuned, ids, mask, processors=[processor]), expected)
    hook.remove()
    assert fed == [11, *[1] * 5]
    later = AdapterGuidance(tuned, 0.5)
    assert torch.equal(generate(tuned, ids, mask, processors=[later], use_cache=False), expected)


def test_the_base_shares_the_memory_and_the_model_stays_as_it_is(models):
    language = models("llama")
    tuned = adapted(language, "llama", modules_to_save=["lm_head"])
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    ids, mask = batch(language)
    expected = generate(tuned, ids, mask)
    processor = AdapterGuidance(tuned, 0.5)
    own = {tensor.data_ptr() for tensor in tuned.state_dict().values()}
    names = [name for name, _ in language.model.named_parameters()]
    assert [name for name, _ in processor._base.named_parameters()] == names
    assert {parameter.data_ptr() for parameter in processor._base.parameters()} <= own
    generate(tuned, ids, mask, processors=[processor])
    del processor
    gc.collect()
    assert not tuned.get_base_model()._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    assert torch.equal(generate(tuned, ids, mask), expected)


@pytest.mark.parametrize("gamma", [math.nan, math.inf, -0.5])
def test_a_gamma_that_is_none(gamma, models):
    with pytest.raises(UsageError, match="gamma is"):
        AdapterGuidance(models("llama").model, gamma)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"init_lora_weights": "pissa"}, "its initialisation moved the weights"),
        ({"init_lora_weights": "olora"}, "its initialisation moved the weights"),
        ({"bias": "all"}, "bias='all' trained the biases"),
    ],
)
def test_a_model_that_is_no_longer_the_base(options, why, models):
    language = models("llama")
    tuned = adapted(language, "llama", size=0.1, **options)
    with pytest.raises(UsageError, match=why):
        AdapterGuidance(tuned, 0.5)
    ids, mask = batch(language)  # with the original, it is guided like any other
    processor = AdapterGuidance(tuned, 0.0, base=language.model)
    expected = generate(language.model, ids, mask)
    assert torch.equal(generate(tuned, ids, mask, processors=[processor]), expected)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "pissa_niter_4", "loftq"])
def test_initialisations_that_need_data_are_known_by_name(init, models):
    tuned = adapted(models("llama"), "llama")
    tuned.peft_config["default"].init_lora_weights = init
    with pytest.raises(UsageError, match="its initialisation moved the weights"):
        AdapterGuidance(tuned, 0.5)


def test_models_that_do_not_go_together(models):
    language = models("llama")
    base, tuned = language.model, adapted(language, "llama")
    with pytest.raises(UsageError, match="has no adapter, so its base is unknown"):
        AdapterGuidance(base, 0.5)
    with pytest.raises(UsageError, match="must be a model alone"):
        AdapterGuidance(base, 0.5, base=tuned)
    with pytest.raises(UsageError, match="must be a model alone"):
        AdapterGuidance(base, 0.5, base=tuned.get_base_model())
    merged = adapted(language, "llama")
    merged.merge_adapter()
    with pytest.raises(UsageError, match="the adapter is merged"):
        AdapterGuidance(merged, 0.5)
    prompts = get_peft_model(
        copy.deepcopy(base), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(UsageError, match="adds tokens to the input"):
        AdapterGuidance(prompts, 0.5)
    grown = copy.deepcopy(base)
    grown.resize_token_embeddings(base.config.vocab_size + 3)
    with pytest.raises(ShapeMismatch, match="has no probability under it"):
        AdapterGuidance(grown, 0.5, base=base)
    with pytest.raises(UnsupportedFormat, match="BertForMaskedLM does not generate text"):
        AdapterGuidance(models("bert").model, 0.5, base=models("bert").model)
    with pytest.raises(UsageError, match="plausibility is 2"):
        AdapterGuidance(tuned, 0.5, plausibility=2.0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_beams": 2}, "changed before guidance"),
        ({"repetition_penalty": 1.5}, "changed before guidance"),
        ({"cache_implementation": "static"}, "static cache"),
    ],
)
def test_a_generation_that_guidance_does_not_fit(options, why, models):
    language = models("llama")
    tuned = adapted(language, "llama")
    ids, mask = batch(language)
    with pytest.raises((UsageError, UnsupportedFormat), match=why):
        generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.5)], **options)


def test_a_processor_serves_one_call_of_its_own_model_on_tokens(models):
    language = models("llama")
    base, tuned = language.model, adapted(language, "llama")
    ids, mask = batch(language)
    used = AdapterGuidance(tuned, 0.5)
    expected = generate(tuned, ids, mask, processors=[used])
    with pytest.raises(UsageError, match="do not continue those of the step before"):
        generate(tuned, ids, mask, processors=[used])
    with pytest.raises(UsageError, match="is not the one that AdapterGuidance was made for"):
        generate(base, ids, mask, processors=[AdapterGuidance(tuned, 0.5)])
    embeddings = tuned.get_input_embeddings()(ids).detach()
    with pytest.raises(UsageError, match="embeddings in place of tokens"):
        tuned.generate(
            inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=2, do_sample=False,
            logits_processor=[AdapterGuidance(tuned, 0.5)],
        )  # fmt: skip
    # After guidance, other processors do as they always do.
    penalty = transformers.RepetitionPenaltyLogitsProcessor(5.0)
    found = generate(tuned, ids, mask, processors=[AdapterGuidance(tuned, 0.5), penalty])
    assert not torch.equal(found, expected)
