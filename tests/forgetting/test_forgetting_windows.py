"""Every token is scored once, every byte is counted, and text that is too little is refused."""

import numpy as np
import pytest
from forgetting_models import TEXT
from test_forgetting_losses import corpus

from intruscope.errors import IntruscopeError
from intruscope.forgetting.windows import cut, default_unit


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("context", "stride"), [(8, 1), (8, 7), (16, 5), (64, 32), (64, 63)])
def test_every_token_is_scored_once_with_the_context_that_was_promised(name, context, stride, models):
    language = models(name)
    ids = language.tokenizer(TEXT)["input_ids"]
    sequences = cut(corpus(TEXT), language, context=context, stride=stride)
    scored = [int(window.ids[p]) for window in sequences.windows for p in window.scored]
    assert scored == ids[1:]
    assert sequences.num_tokens == len(ids) - 1
    assert sequences.num_sequences == len(sequences.windows)
    for window in sequences.windows[1:]:
        assert len(window.ids) == context
        assert len(window.scored) <= stride
        assert window.scored[0] >= context - stride  # so much was carried over
        assert window.scored[-1] == context - 1
    starts = "".join(language.tokenizer.decode(window.ids) for window in sequences.windows[:1])
    assert TEXT.startswith(starts.removeprefix("<s>")[:20])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("unit", ["line", "running"])
def test_bytes_are_those_of_the_text(name, unit, models):
    language = models(name)
    sequences = cut(corpus(TEXT), language, unit=unit, context=32)
    total = len(TEXT.rstrip().encode())
    if unit == "line":
        lines = [line.encode() for line in TEXT.splitlines()]
        total = sum(map(len, lines))
        if name != "gpt2":
            assert list(sequences.bytes_N) == [len(line) for line in lines]
    unscored = {"gpt2": 1 if unit == "running" else len(TEXT.splitlines())}.get(name, 0)
    # Without a token in front the first token of a stream is not scored, and its bytes are not counted.
    assert total - 8 * unscored <= sequences.bytes_N.sum() <= total + 1
    if unscored:
        assert sequences.bytes_N.sum() < total + (unit == "running")  # the last line break is a token


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, texts, **options):
        assert not options.pop("return_offsets_mapping", False)
        return self._inner(texts, **options)


def test_a_tokenizer_without_offsets(models):
    from dataclasses import replace

    language = models("bert")
    slow = replace(language, tokenizer=Slow(language.tokenizer))
    fast, spread = cut(corpus(TEXT), language), cut(corpus(TEXT), slow)
    assert list(spread.bytes_N) == list(fast.bytes_N)  # of whole lines
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(fast.windows, spread.windows, strict=True))


def test_long_lines_of_a_masked_model_are_cut_evenly_and_not_truncated(models):
    language = models("bert")
    long = " ".join(TEXT.split())
    sequences = cut(corpus(long + "\nShe waited."), language)
    ids = language.tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"]
    own = [window for window in sequences.windows if window.sequence == 0]
    assert [int(i) for window in own for i in window.ids[1:-1]] == ids
    assert max(len(window.ids) for window in own) <= 32
    assert max(len(window.ids) for window in own) - min(len(window.ids) for window in own) <= 1
    assert all(window.ids[0] == 2 and window.ids[-1] == 3 for window in own)
    assert sequences.num_sequences == 2
    # Running text: the same windows, each a sequence of its own.
    running = cut(corpus(long + "\nShe waited."), language, unit="running")
    assert running.num_sequences == len(running.windows) > 2


def test_special_tokens_in_the_text_are_not_scored(models):
    language = models("bert")
    sequences = cut(corpus("She [MASK] waited.", "All [SEP] happy", rows=True), language)
    words = [language.tokenizer.convert_ids_to_tokens(w.ids[w.scored].tolist()) for w in sequences.windows]
    assert not {"[MASK]", "[SEP]", "[CLS]"}.intersection(*map(set, words))
    assert sequences.num_tokens == sum(len(w.ids) - 3 for w in sequences.windows)


def test_rows_of_a_table_are_sequences_whatever_breaks_they_hold(models):
    language = models("gpt2")
    rows = corpus("It was a\nbright cold day", "Call me.\n\nShe waited.", rows=True)
    assert cut(rows, language, unit="line").num_sequences == 2
    lines = corpus("It was a\nbright cold\x0c\x85day", "Call me.\r\n\rShe waited.")
    assert cut(lines, language, unit="line").num_sequences == 4


def test_at_most_so_many_sequences_spread_over_the_text(models):
    language = models("gpt2")
    whole = cut(corpus(TEXT), language, unit="line")
    few = cut(corpus(TEXT), language, unit="line", max_sequences=3)
    firsts = [tuple(w.ids) for w in whole.windows]
    assert [firsts.index(tuple(w.ids)) for w in few.windows] == [0, 4, 7]
    assert few.num_left_out == 5
    assert [w.sequence for w in few.windows] == [0, 1, 2]


def test_the_defaults():
    assert (default_unit("causal"), default_unit("masked")) == ("running", "line")


def test_roberta_counts_positions_from_past_the_padding(models):
    from dataclasses import replace

    from intruscope.adapters.live_models import max_context

    language = models("roberta")

    class Boundless:
        model_max_length = 10**30

    assert max_context(language.model, Boundless()) == 39  # 40 positions, the first is the padding's
    assert max_context(models("bert").model, Boundless()) == 40
    assert replace(language).max_context == 32  # what the tokenizer says is less


@pytest.mark.parametrize(
    ("name", "text", "options", "says", "remedy"),
    [
        ("gpt2", "Call me.", {}, r"text has \d tokens, but at least one context of 64", "--context"),
        ("bert", "Call me.", {"unit": "running"}, "at least one context of 30 is needed", "--unit line"),
        ("gpt2", "Call me.", {"unit": "line"}, "has 1 sequences .* at least 2", "running"),
        ("gpt2", "A\nB", {"unit": "line"}, "has 0 sequences", "more lines"),
        ("gpt2", TEXT, {"context": 65}, "--context is 65 tokens, .* at least 2 and at most 64", "--context"),
        ("gpt2", TEXT, {"context": 8, "stride": 8}, "--stride is 8, .* between 1 and 7", "--stride"),
        ("bert", TEXT, {"stride": 8}, "--stride has no meaning for a masked", "leave --stride out"),
        ("bert", "Ψ Ξ Ω Ж Щ\n Я Ю Ψ Ξ", {}, "does not know 100%", "--tokenizer"),
    ],
)
def test_refused(name, text, options, says, remedy, models):
    with pytest.raises(IntruscopeError, match=says) as caught:
        cut(corpus(text), models(name), **options)
    assert remedy in caught.value.remedy


def test_the_tokenizer_of_another_model_is_refused(models):
    from dataclasses import replace

    bert, gpt2 = models("bert"), models("gpt2")
    with pytest.raises(IntruscopeError, match=r"produced token \d+, .* ends at \d+") as caught:
        cut(corpus(TEXT), replace(bert, tokenizer=gpt2.tokenizer, kind="causal"))
    assert "--tokenizer" in caught.value.remedy
    with pytest.raises(IntruscopeError, match="without a mask token"):
        cut(corpus(TEXT), replace(bert, tokenizer=gpt2.tokenizer))
