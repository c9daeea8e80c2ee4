"""Figures from hand-made facts: the paper's formulas, their intervals, and what collapse looks like."""

import itertools
import math

import numpy as np
import pytest

from intruscope.forgetting.intervals import Interval, wilson
from intruscope.knowledge.facts import Fact
from intruscope.knowledge.figures import (
    answer_figures,
    category_of,
    difference,
    figures_of,
    most_frequent,
    reliability,
)
from intruscope.knowledge.records import CATEGORIES, FactReport


def item(base, tuned, other=None, **more):
    return FactReport(
        **{
            "question": "Q?", "answers": ("a1",), "trained": None, "base": base, "tuned": tuned,
            "base_other_prompts": other or base, "base_right": 0.0, "tuned_right": 0.0, "base_answer": "",
            "tuned_answer": "",
        } | more
    )  # fmt: skip


def test_categories():
    found = [category_of(*each) for each in ((4, 4, 0), (3, 4, 9), (1, 4, 0), (0, 4, 1), (0, 4, 0))]
    assert found == ["HighlyKnown", "MaybeKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]


def test_shifts_are_the_papers_and_fold_weakly_known_into_unknown():
    """Every transition n times, each a different number of times, so that a transpose would show."""
    times = dict(zip(itertools.product(CATEGORIES, CATEGORIES), range(1, 17), strict=True))
    found = figures_of([item(*pair) for pair, count in times.items() for _ in range(count)])
    total = sum(times.values())
    assert found.facts == total
    assert found.transitions == ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16))
    assert [found.base[name] for name in CATEGORIES] == [10, 26, 42, 58]
    assert [found.tuned[name] for name in CATEGORIES] == [28, 32, 36, 40]
    high, maybe, low = ("HighlyKnown",), ("MaybeKnown",), ("WeaklyKnown", "Unknown")

    def moved(before, after):
        return sum(times[pair] for pair in itertools.product(before, after))

    positive = moved(low, high) + moved(low, maybe) + moved(maybe, high)
    negative = moved(high, low) + moved(maybe, low) + moved(high, maybe)
    assert found.positive_shift.estimate == pytest.approx(positive / total)
    assert found.negative_shift.estimate == pytest.approx(negative / total)
    assert found.net_shift.estimate == pytest.approx((positive - negative) / total)
    assert found.net_shift.low < found.net_shift.estimate < found.net_shift.high
    assert found.null_shift.estimate == found.null_shift.low == 0.0


def test_the_null_shift_is_half_of_what_moves():
    facts = [item("HighlyKnown", "HighlyKnown", other) for other in ["MaybeKnown"] * 3 + ["HighlyKnown"] * 7]
    facts += [item("Unknown", "Unknown", "WeaklyKnown")] * 10  # no move of a level
    found = figures_of(facts)
    both = wilson(3, 20)
    assert (found.null_shift.estimate, found.null_shift.high) == (0.075, both.high / 2)
    assert found.null_transitions[0] == (7, 3, 0, 0)
    assert found.negative_beyond_null.estimate == pytest.approx(-0.075)
    assert found.negative_shift.estimate == 0.0


def test_wilsons_interval_takes_shares():
    z2 = 1.959963984540054**2
    assert (wilson(0, 7).low, wilson(0, 7).high) == (0.0, pytest.approx(z2 / (7 + z2)))
    assert (wilson(7, 7).low, wilson(7, 7).high) == (pytest.approx(7 / (7 + z2)), 1.0)
    found = reliability([0.5, 1.0, 0.0, 0.25])
    assert found.estimate == 0.4375
    for bound in (found.low, found.high):  # where the score test has its critical value
        assert (found.estimate - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / 4)


def test_a_difference_keeps_its_level():
    """Newcombe's example (1998): 56 of 70 against 48 of 80, method 10: 0.0524 to 0.3339."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        lost, moved = generator.random(80) < 0.06, generator.random(80) < 0.1
        both = wilson(int(moved.sum()), 80)
        half = Interval(estimate=both.estimate / 2, low=both.low / 2, high=both.high / 2)
        found = difference(wilson(int(lost.sum()), 80), half)
        covered += found.low <= 0.06 - 0.05 <= found.high
    assert covered >= 0.92 * 400


def test_collapse_refusals_and_answers_of_trained_facts():
    facts = [Fact(question=f"Q{i}", answers=(f"a{i}",), trained=i < 2) for i in range(4)]
    varied = answer_figures(facts, [["a0"], ["A1."], ["x1"], ["x2"]])
    assert (varied.num_answers, varied.num_distinct) == (4, 4)
    assert varied.entropy == pytest.approx(math.log(4))
    assert varied.trained_answer_fraction == varied.refusal_fraction == 0.0
    collapsed = answer_figures(facts, [["a0", "a0"]] * 3 + [["I don't know", ""]])
    assert (collapsed.num_distinct, collapsed.top_fraction) == (3, 0.75)
    shares = np.array([6, 1, 1]) / 8
    assert collapsed.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert collapsed.refusal_fraction == 0.25
    assert collapsed.trained_answer_fraction == 0.5  # both answers to Q2, of four to untrained facts
    assert collapsed.common[0].text == "a0"
    untold = [Fact(question="Q", answers=("a",))] * 2
    assert answer_figures(untold, [["a"], ["b"]]).trained_answer_fraction is None


def test_the_most_frequent_answer_is_shown_as_it_was_written():
    assert most_frequent(["Rome", "The Paris", "paris!", "Rom"]) == "The Paris"
