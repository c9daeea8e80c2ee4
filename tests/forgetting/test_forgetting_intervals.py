"""Intervals cover what they claim to, and the closed forms are the textbook's."""

import numpy as np
import pytest
from scipy import stats

from intruscope.errors import IntruscopeError
from intruscope.forgetting.intervals import (
    accuracy_difference,
    holm,
    loss_per,
    mcnemar,
    paired_difference,
    percentile_interval,
    resampled_sums,
    sign_flip,
    wilson,
)

NUM_REPETITIONS = 200


def heavy_tailed(generator, num):
    """Losses of two models on sequences whose lengths and difficulty are heavy-tailed, and whose
    difference depends on the length, so that means of sequences are not means of tokens."""
    tokens = np.ceil(10 * (1 + generator.pareto(2.5, num))).astype(int)
    hard = generator.gamma(4.0, 0.8, num)
    before = tokens * hard
    change = 0.1 + 0.02 * np.log(tokens) + 0.2 * generator.standard_t(5, num) / np.sqrt(tokens)
    return before, before + tokens * change, tokens


def test_intervals_of_forgetting_cover_the_truth():
    truth_generator = np.random.default_rng(123)
    before, after, tokens = heavy_tailed(truth_generator, 4_000_000)
    truth = (after - before).sum() / tokens.sum()
    covered = wrong_unit = 0
    for repetition in range(NUM_REPETITIONS):
        sample = heavy_tailed(np.random.default_rng(repetition), 150)
        found = paired_difference(*sample, num_resamples=1000, seed=repetition)
        covered += found.low <= truth <= found.high
        by_sequence = ((sample[1] - sample[0]) / sample[2]).mean()
        wrong_unit += abs(by_sequence - truth) > abs(found.estimate - truth)
    assert 0.90 <= covered / NUM_REPETITIONS <= 0.98
    assert wrong_unit > NUM_REPETITIONS / 2  # the case is one where weighting by tokens matters


def test_intervals_of_a_loss_cover_the_truth():
    before, _, tokens = heavy_tailed(np.random.default_rng(123), 4_000_000)
    truth = before.sum() / tokens.sum()
    covered = 0
    for repetition in range(NUM_REPETITIONS):
        nats, _, units = heavy_tailed(np.random.default_rng(repetition), 150)
        found = loss_per(nats, units, num_resamples=1000, seed=repetition)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / NUM_REPETITIONS <= 0.98


def test_pairing_is_what_makes_them_narrow():
    before, after, tokens = heavy_tailed(np.random.default_rng(0), 300)
    paired = paired_difference(before, after, tokens)
    shuffled = np.random.default_rng(1).permutation(300)
    assert paired.high - paired.low < (loss_per(before, tokens).high - loss_per(before, tokens).low) / 4
    apart = paired_difference(before, after[shuffled], tokens)
    assert paired.high - paired.low < (apart.high - apart.low) / 4


@pytest.mark.parametrize("differs", [0.0, 0.03])
def test_intervals_of_accuracy_differences_cover_the_truth(differs):
    covered = 0
    for repetition in range(NUM_REPETITIONS):
        generator = np.random.default_rng(repetition)
        draw = generator.random(400)
        before = draw < 0.8
        flip = generator.random(400)
        after = np.where(before, flip > 0.05, flip < 0.2 + 5 * differs)
        found = accuracy_difference(before, after)
        covered += found.low <= 0.8 * -0.05 + 0.2 * (0.2 + 5 * differs) <= found.high
    assert 0.90 <= covered / NUM_REPETITIONS <= 0.98


def test_resampled_sums_are_those_of_drawn_sequences():
    columns = np.array([[1.0, 10.0, 100.0], [1.0, 1.0, 1.0]])
    sums = resampled_sums(columns, num_resamples=500, seed=3)
    assert sums.shape == (500, 2)
    assert set(sums[:, 1]) == {3.0}  # always as many as there are, and the same draws for both columns
    counts = {(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)}
    assert set(sums[:, 0]) == {a + 10.0 * b + 100.0 * c for a, b, c in counts}
    assert np.array_equal(sums, resampled_sums(columns, num_resamples=500, seed=3))
    assert not np.array_equal(sums, resampled_sums(columns, num_resamples=500, seed=4))
    # In blocks or at once: every block is drawn, and the mean is right.
    many = resampled_sums(np.ones((1, 3000)), num_resamples=3000)
    assert many.shape == (3000, 1)
    assert set(many[:, 0]) == {3000.0}


def test_against_the_bootstrap_of_scipy():
    before, after, tokens = heavy_tailed(np.random.default_rng(5), 120)
    ours = paired_difference(before, after, tokens, num_resamples=20_000)

    def ratio(b, a, t, axis):
        return (a - b).sum(axis) / t.sum(axis)

    theirs = stats.bootstrap(
        (before, after, tokens), ratio, paired=True, method="percentile", n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert ours.estimate == pytest.approx((after - before).sum() / tokens.sum(), rel=1e-12)


def test_by_hand():
    assert percentile_interval(np.arange(1001), 5.0).low == pytest.approx(25.0)
    assert percentile_interval(np.arange(1001), 5.0).high == pytest.approx(975.0)
    found = wilson(8, 10)  # Wilson 1927, to the digits of the usual tables
    assert (found.estimate, round(found.low, 3), round(found.high, 3)) == (0.8, 0.490, 0.943)
    before = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    after = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], dtype=bool)
    # 4 lost, 2 won: 2 * P(X <= 2 | 6, 1/2) = 2 * 22/64
    assert mcnemar(before, after) == pytest.approx(44 / 64)
    assert mcnemar(before, before) == 1.0
    assert mcnemar(after, before) == mcnemar(before, after)
    found = accuracy_difference(before, after)
    assert found.estimate == pytest.approx(-0.2)
    p_lost, p_won = 5 / 12, 3 / 12
    half = 1.959964 * np.sqrt((p_lost + p_won - (p_won - p_lost) ** 2) / 12)
    assert found.low == pytest.approx(p_won - p_lost - half, abs=1e-6)
    assert found.high == pytest.approx(p_won - p_lost + half, abs=1e-6)
    flipped = accuracy_difference(after, before)
    assert (flipped.estimate, flipped.low, flipped.high) == pytest.approx((0.2, -found.high, -found.low))


def test_refused():
    with pytest.raises(IntruscopeError, match="at least 2 sequences, this text has 1"):
        paired_difference([1.0], [2.0], [3])
    with pytest.raises(IntruscopeError, match="3 examples before and 2 after"):
        mcnemar([True] * 3, [True] * 2)


def test_holm_is_the_textbooks():
    # Holm (1979): the smallest p times 4, the next times 3 ..., never falling, at most 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.7, 0.9]) == (1.0, 1.0)
    assert holm([0.2]) == (0.2,)
    assert holm([]) == ()


def test_holm_keeps_the_rate_of_false_findings_however_tests_depend():
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        shared = generator.standard_normal()
        z = np.concatenate([np.full(5, shared), -np.full(5, shared), generator.standard_normal(10)])
        found += min(holm(list(2 * stats.norm.sf(abs(z))))) < 0.05
    assert found / 1000 < 0.065  # 0.05 and three standard errors


@pytest.mark.parametrize("num", [7, 40])
def test_sign_flips_are_scipys_and_ignore_what_did_not_change(num):
    generator = np.random.default_rng(num)
    before, after = generator.random(num), generator.random(num) + 0.25
    theirs = stats.permutation_test(
        (after - before,), np.mean, permutation_type="samples", rng=np.random.default_rng(1),
        n_resamples=np.inf if num < 10 else 20_000,
    ).pvalue  # fmt: skip
    ours = sign_flip(before, after, num_resamples=20_000)
    assert ours == pytest.approx(theirs, rel=1e-12 if num < 10 else 0.3, abs=1e-12 if num < 10 else 1e-3)
    assert sign_flip([*before, 3.0], [*after, 3.0], num_resamples=20_000) == ours
    assert sign_flip(after, before, num_resamples=20_000) == ours
    assert sign_flip(before, before) == 1.0
