"""Answers of a live model: batched, padded and cached ones are a naive twin's; samples have their odds."""

import inspect
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from knowledge_models import SHOT, names, planted, value_of, word_tokenizer

from intruscope.adapters.live import LanguageModel
from intruscope.errors import MalformedInput
from intruscope.knowledge.answers import Answerer
from intruscope.knowledge.settings import KnowledgeSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))

LENGTH = 6
PROMPTS = [
    "Call", "Call me.", "She waited. Many years later he was", "It was", "A screaming comes across the sky.",
    "All happy families are", "In the beginning", "The", "he was to remember that distant", "Call me. Call",
]  # fmt: skip


def answerer(language, **settings):
    return Answerer(language, KnowledgeSettings(**settings), max_answer_tokens=LENGTH, is_chat=False)


def naive(language, prompt):
    """Token by token, one prompt at a time, everything computed anew."""
    ids = language.tokenizer(prompt)["input_ids"]
    start = len(ids)
    ends = {*language.tokenizer.all_special_ids, language.model.generation_config.eos_token_id}
    with torch.no_grad():
        while len(ids) < start + LENGTH:
            following = int(
                language.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()
            )
            if following in ends:
                break
            ids.append(following)
    lines = language.tokenizer.decode(ids[start:]).strip().splitlines()
    return lines[0].strip() if lines else ""


@pytest.fixture(scope="module")
def made():
    import forgetting_models

    return forgetting_models.Made()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_batched_padded_and_cached_answers_are_the_naive_ones(made, name):
    language = made(name)
    expected = [naive(language, prompt) for prompt in PROMPTS]
    assert len(set(expected)) > 5
    before = language.model.generation_config
    one = answerer(language)
    assert one.greedy([*PROMPTS, PROMPTS[0]]) == [*expected, expected[0]]
    assert one._pads is True
    assert answerer(language, batch_tokens=1).greedy(PROMPTS) == expected
    assert language.model.generation_config is before


def test_the_models_own_generation_settings_have_no_say(made):
    language = made("llama")
    expected = answerer(language).greedy(PROMPTS)
    config = language.model.generation_config
    config.repetition_penalty, config.do_sample, config.min_new_tokens = 50.0, True, LENGTH
    assert answerer(language).greedy(PROMPTS) == expected


def test_a_model_that_cannot_be_padded_gets_batches_of_one_length(made):
    language = made("gpt2")
    expected = [naive(language, prompt) for prompt in PROMPTS]
    forward = language.model.forward

    def deaf(*arguments, attention_mask=None, position_ids=None, **options):
        return forward(*arguments, **options)

    deaf.__signature__ = inspect.signature(forward)
    language.model.forward = deaf
    one = answerer(language)
    assert one.greedy(PROMPTS) == expected
    assert one._pads is False


def test_an_answer_is_one_line_without_what_follows():
    language = LanguageModel(model=planted()[0], tokenizer=word_tokenizer(), kind="causal", max_context=128)
    shots = SHOT.format(name="known3", value=value_of("known3"))
    found = answerer(language).greedy(
        [f"{shots}Question: Where is {name}\nAnswer:" for name in names("known")]
    )
    assert found == [value_of(name) for name in names("known")]


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_samples_have_the_odds_of_their_temperature(made, temperature):
    language = made("llama")
    for parameter in language.model.parameters():  # so that several words are likely
        parameter.data *= 0.6
    prompt, num = "Call me", 600
    with torch.no_grad():
        ids = torch.tensor([language.tokenizer(prompt)["input_ids"]])
        odds = (language.model(input_ids=ids).logits[0, -1].double() / temperature).softmax(-1)
    settings = KnowledgeSettings(temperature=temperature)
    one = Answerer(language, settings, max_answer_tokens=1, is_chat=False)
    (found,) = one.sampled([[prompt]], num)
    assert len(found) == num
    counted = Counter(found)
    checked = 0
    for word in odds.argsort(descending=True)[:6].tolist():
        text = language.tokenizer.decode([word]).strip()
        share = sum(
            float(odds[i]) for i in range(len(odds)) if language.tokenizer.decode([i]).strip() == text
        )
        if text.isprintable() and text and share > 0.02:
            assert abs(counted[text] / num - share) < 4.5 * math.sqrt(share * (1 - share) / num)
            checked += 1
    assert checked >= 2


def test_a_sample_depends_on_its_prompt_number_and_seed_alone(made):
    language = made("gpt2")
    whole = answerer(language, temperature=2.0).sampled([PROMPTS[:3], PROMPTS[3:]], 2)
    alone = answerer(language, temperature=2.0, batch_tokens=1).sampled([PROMPTS[3:]], 2)
    assert whole[1] == alone[0]
    assert len(set(whole[1])) > 5
    assert answerer(language, temperature=2.0, seed=1).sampled([PROMPTS[3:]], 2) != alone
    (same,) = answerer(language, temperature=2.0).sampled([["Call", "Call"]], 2)
    assert len(set(same)) > 1  # prompts of one fact may be the same; their samples are not


def test_nan_is_refused(made):
    language = made("gpt2")
    language.model.transformer.ln_f.bias.data[0] = math.nan
    with pytest.raises(MalformedInput, match="NaN"):
        answerer(language).greedy(PROMPTS)
