"""Does a fit turn intruders down more? Planted effects are found, their clean twins are not."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from intruscope.fitting.directions import direction_test
from intruscope.fitting.records import Direction


def world(effect, *, size_effect=-0.2, num_matrices=40, rank=8, seed=0):
    """Directions whose factor falls with their size, and by ``effect`` where they are intruders.

    Large directions are intruders more often: without strata, their size alone would look like an effect.
    """
    draw = np.random.default_rng(seed)
    found = []
    for matrix in range(num_matrices):
        values = np.sort(np.exp(draw.normal(-2.0, 0.7, rank)))[::-1]
        for index, value in enumerate(values):
            share = float(draw.random() < 1.0 / (1.0 + (0.1 / value) ** 2)) * draw.uniform(0.5, 1.0)
            factor = 0.6 + size_effect * np.log(value) / 2 + effect * share + 0.05 * draw.standard_normal()
            found.append(
                Direction(
                    matrix=str(matrix),
                    index=index,
                    factor=float(factor),
                    intruder_share=float(share),
                    value=float(value),
                    relative_value=float(value),
                    alignment=0.5,
                )
            )
    return found


@pytest.mark.parametrize(("effect", "answer"), [(-0.1, "more"), (0.1, "less"), (0.0, "no difference")])
def test_a_planted_effect_is_found_and_size_alone_is_none(effect, answer):
    directions = world(effect)
    test = direction_test(directions, weight=1.0)
    assert test.answer == answer
    if effect:
        assert test.p_value < 0.01
        assert (
            test.difference.low < effect * 0.75 * 0.7 < test.difference.high
            or abs(test.difference.estimate) > 0.03
        )
    # The confounding is real: over all sizes together there is a correlation in the clean twin too.
    shares = [each.intruder_share for each in directions]
    assert spearmanr(shares, [each.factor for each in directions]).pvalue < 1e-3 or effect > 0.0


def test_the_clean_twin_is_called_an_effect_as_rarely_as_it_says():
    answers = [direction_test(world(0.0, num_matrices=8, seed=seed), weight=1.0).answer for seed in range(12)]
    assert answers.count("no difference") >= 10


def test_the_correlation_is_that_of_ranks_centred_by_stratum():
    directions = world(-0.05, num_matrices=6)
    test = direction_test(directions, weight=1.0)
    order = sorted(range(len(directions)), key=lambda i: directions[i].relative_value)
    first, second = [], []
    for stratum in np.array_split(np.array(order), test.num_strata):
        for name, into in (("factor", first), ("intruder_share", second)):
            own = np.array([getattr(directions[i], name) for i in stratum])
            # Mid-ranks by counting, so that ties share theirs.
            ranks = np.array([(own < x).sum() + 0.5 * (own == x).sum() for x in own])
            into.extend(ranks - ranks.mean())
    assert test.correlation == pytest.approx(np.corrcoef(first, second)[0, 1])


def test_few_directions_give_no_answer_and_no_intruders_no_difference():
    assert direction_test(world(-0.3, num_matrices=2), weight=1.0).answer == "too few directions"
    none = [Direction(**{**vars(each), "intruder_share": 0.0}) for each in world(0.0, num_matrices=10)]
    test = direction_test(none, weight=1.0)
    assert (test.answer, test.correlation) == ("no difference", None)
