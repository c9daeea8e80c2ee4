"""Losses are what a naive computation, one token at a time in float64, says they are."""

import numpy as np
import pytest
import torch
from forgetting_models import MASKED, TEXT

from intruscope.errors import IntruscopeError
from intruscope.forgetting.losses import Forward, _batches, measure, rows_of
from intruscope.forgetting.texts import Corpus, Document
from intruscope.forgetting.windows import cut


def corpus(*texts, rows=False):
    documents = tuple(Document(text=text, source=i, is_row=rows) for i, text in enumerate(texts))
    return Corpus(documents=documents, sources=(), sha256="")


def next_token_nats(model, context_ids, target):
    """Minus log p of one token after a context, alone in its batch."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context_ids])).logits[0, -1]
    return float(-torch.log_softmax(logits, 0)[target])


def naive_causal(language, ids, context, stride):
    """Each token from its own forward pass. ``ids`` begin with what the tokenizer puts first."""
    model = language.model.double()
    nats = []
    for i in range(1, len(ids)):
        # The first window scores all it holds; each further one moves on by a stride.
        steps = 0 if i < context else -(-(i - context + 1) // stride)
        stop = min(context + steps * stride, len(ids))
        nats.append(next_token_nats(model, ids[max(0, stop - context) : i], ids[i]))
    return nats


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("context", "stride"), [(64, None), (20, 19), (20, 1), (33, 7)])
def test_running_text_of_a_causal_model(name, context, stride, models):
    language = models(name)
    sequences = cut(corpus(TEXT), language, context=context, stride=stride)
    got = measure(language, sequences, protocol="causal", batch_tokens=150)
    ids = language.tokenizer(TEXT)["input_ids"]
    expected = naive_causal(language, ids, context, stride or context // 2)
    assert got.tokens.sum() == len(expected)
    assert got.nats.sum() / len(expected) == pytest.approx(np.mean(expected), abs=1e-5)
    # Sequence by sequence: the windows' tokens follow each other.
    ends = np.cumsum(got.tokens)
    parts = [sum(expected[end - n : end]) for end, n in zip(ends, got.tokens, strict=True)]
    assert got.nats == pytest.approx(parts, abs=1e-4)
    assert got.perplexity == pytest.approx(np.exp(np.mean(expected)), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_lines_stand_alone_whatever_stride_padding_and_order(name, models):
    language = models(name)
    lines = TEXT.splitlines()
    results = [
        measure(
            language,
            cut(corpus(TEXT), language, unit="line", context=context, stride=stride),
            protocol="causal",
            batch_tokens=batch,
        )
        for context, stride, batch in [(64, 1, 4096), (64, 63, 1), (64, 32, 137)]
    ]
    ids = [language.tokenizer(line)["input_ids"] for line in lines]
    expected = [sum(naive_causal(language, line, 64, 1)) for line in ids]
    for got in results:
        assert list(got.tokens) == [len(line) - 1 for line in ids]
        assert got.nats == pytest.approx(expected, abs=1e-4)


def test_the_models_own_loss_of_one_window(models):
    """transformers shifts the labels itself."""
    language = models("gpt2")
    line = TEXT.splitlines()[0]
    ids = torch.tensor([language.tokenizer(line)["input_ids"]])
    with torch.no_grad():
        expected = float(language.model(input_ids=ids, labels=ids).loss)
    sequences = cut(corpus(line, TEXT.splitlines()[2]), language, unit="line")
    got = measure(language, sequences, protocol="causal")
    assert got.nats[0] / got.tokens[0] == pytest.approx(expected, abs=1e-5)


def naive_masked(language, line, groups):
    """Each group of positions masked together, alone in its batch."""
    model = language.model.double()
    ids = language.tokenizer(line)["input_ids"]
    nats = 0.0
    for group in groups(ids):
        masked = [language.tokenizer.mask_token_id if i in group else id_ for i, id_ in enumerate(ids)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([masked])).logits[0]
        nats -= sum(float(torch.log_softmax(logits[i], 0)[ids[i]]) for i in group)
    return nats


@pytest.mark.parametrize("batch", [1, 61, 4096])
def test_the_exact_pseudo_loss(batch, models):
    language = models("bert")
    lines = [TEXT.splitlines()[i] for i in (3, 0, 6)]
    sequences = cut(corpus(*lines, rows=True), language)
    got = measure(language, sequences, protocol="exact", batch_tokens=batch)
    expected = [
        naive_masked(language, line, lambda ids: [{i} for i in range(1, len(ids) - 1)]) for line in lines
    ]
    assert list(got.tokens) == [len(language.tokenizer(line)["input_ids"]) - 2 for line in lines]
    assert got.nats == pytest.approx(expected, abs=1e-4)
    assert got.nats.sum() / got.tokens.sum() == pytest.approx(sum(expected) / got.tokens.sum(), abs=1e-5)


def test_the_fast_protocol_masks_every_token_once_and_the_same_for_every_model(models):
    language = models("bert")
    sequences = cut(corpus(TEXT), language)
    rows = rows_of(sequences.windows, "fast", 7)
    for index, window in enumerate(sequences.windows):
        own = [row.positions for row in rows if row.window is window]
        assert sorted(np.concatenate(own)) == list(window.scored), index
        assert max(map(len, own)) - min(map(len, own)) <= 1
        assert len(own) == min(len(window.scored), 7)
    again = rows_of(cut(corpus(TEXT), models("albert")).windows, "fast", 7)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(rows, again, strict=True))
    other = rows_of(sequences.windows, "fast", 8)
    assert not all(np.array_equal(a.positions, b.positions) for a, b in zip(rows, other, strict=True))
    got = measure(language, sequences, protocol="fast", seed=7, batch_tokens=97)
    line, window = TEXT.splitlines()[0], sequences.windows[0]
    groups = [set(row.positions) for row in rows if row.window is window]
    assert got.nats[0] == pytest.approx(naive_masked(language, line, lambda _: groups), abs=1e-4)


@pytest.mark.parametrize("name", [*MASKED, "gpt2", "llama"])
def test_the_head_is_run_on_scored_positions_alone(name, models):
    """The cut output gives what the whole one gives, in every family; and it is really cut."""
    language = models(name)
    sequences = cut(corpus(TEXT), language, unit="line")
    protocol = "causal" if language.kind == "causal" else "fast"
    whole, cut_down = (Forward(language, masked=language.kind == "masked") for _ in range(2))
    whole._cuts = False
    rows = rows_of(sequences.windows, protocol, 0)
    seen = []
    head = language.model.get_output_embeddings()
    for batch in _batches(rows, 200, whole.num_words):
        expected = whole.nats(batch)
        hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
        got = cut_down.nats(batch)
        hook.remove()
        assert got == pytest.approx(expected, abs=2e-5)
    assert cut_down._cuts is True
    assert seen[-1] == len(rows[-1].positions) or seen[-1] < 200


def test_a_head_that_looks_at_other_positions_keeps_them_all(models):
    language = models("bert")
    decoder = language.model.cls.forward
    language.model.cls.forward = lambda hidden: decoder(hidden) + hidden[:, :1].amax()
    sequences = cut(corpus(TEXT), language)
    forward = Forward(language, masked=True)
    rows = rows_of(sequences.windows, "fast", 0)
    forward.nats(rows[:6])
    assert forward._cuts is False


def test_a_padding_token_that_the_model_has_no_row_for(models):
    import copy
    from dataclasses import replace

    language = models("gpt2")
    padded = copy.deepcopy(language.tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == language.model.config.vocab_size
    sequences = cut(corpus(TEXT), language, unit="line")
    expected = measure(language, sequences, protocol="causal").nats
    got = measure(replace(language, tokenizer=padded), sequences, protocol="causal").nats
    assert got == pytest.approx(expected, abs=1e-6)


def test_progress_counts_tokens_to_the_end(models):
    language = models("gpt2")
    sequences = cut(corpus(TEXT), language, context=32)
    seen = []
    measure(language, sequences, protocol="causal", batch_tokens=64, on_progress=seen.append)
    assert seen[-1].done == seen[-1].total == sequences.num_tokens
    assert [event.done for event in seen] == sorted({event.done for event in seen})


def test_a_loss_that_is_no_number_is_refused(models):
    language = models("gpt2")
    sequences = cut(corpus(TEXT), language, unit="line")
    with torch.no_grad():
        language.model.transformer.h[1].mlp.c_fc.bias[3] = float("nan")
    with pytest.raises(IntruscopeError, match=r"loss of sequence \d+ is nan") as caught:
        measure(language, sequences, protocol="causal")
    assert caught.value.exit_code == 4
    assert "intruscope scan" in caught.value.remedy


def test_half_precision_runs_and_is_near(models):
    language = models("llama")
    sequences = cut(corpus(TEXT), language)
    exact = measure(language, sequences, protocol="causal")
    language.model.to(torch.bfloat16)
    near = measure(language, sequences, protocol="causal")
    assert near.nats_per_token == pytest.approx(exact.nats_per_token, rel=0.03)
    assert near.nats_per_token != exact.nats_per_token
