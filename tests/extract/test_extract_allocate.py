"""A number of parameters is spent best: against every choice there is, in small cases."""

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from intruscope.extract.allocate import Spectrum, allocate, uniform_error, uniform_parameters
from intruscope.extract.choose import best_curve, error_curve


def spectrum(squares, cost, *, complete=True, beyond=0.0):
    ordered = sorted(squares, reverse=True)
    total = math.fsum(ordered) + beyond
    left = [math.fsum(ordered[r:]) + beyond for r in range(len(ordered) + 1)]
    bound = len(ordered) if complete else len(ordered) + 5
    return Spectrum(squares=ordered, total=total, left=left, cost=cost, bound=bound, complete=complete)


def every_choice(spectra, budget):
    """(kept, ranks) of all ranks within a budget, by brute force."""
    for ranks in itertools.product(*(range(len(s.squares) + 1) for s in spectra)):
        if sum(r * s.cost for r, s in zip(ranks, spectra, strict=True)) <= budget:
            yield sum(math.fsum(s.squares[:r]) for r, s in zip(ranks, spectra, strict=True)), ranks


SQUARES = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    cases=st.lists(st.tuples(SQUARES, st.integers(1, 7)), min_size=1, max_size=3), budget=st.integers(0, 60)
)
def test_no_choice_within_the_budget_is_better_than_the_stated_gap(cases, budget):
    spectra = [spectrum(squares, cost) for squares, cost in cases]
    spent = allocate(spectra, budget)
    total = sum(s.total for s in spectra)
    kept = sum(math.fsum(s.squares[:r]) for r, s in zip(spent.ranks, spectra, strict=True))
    used = sum(r * s.cost for r, s in zip(spent.ranks, spectra, strict=True))
    best, _ = max(every_choice(spectra, budget))
    assert used == spent.num_parameters <= budget
    assert kept <= best <= kept + spent.gap * total + 1e-9
    assert spent.open == ()


@settings(max_examples=100, deadline=None)
@given(cases=st.lists(SQUARES, min_size=1, max_size=3), cost=st.integers(1, 7), budget=st.integers(0, 60))
def test_matrices_of_one_size_are_served_best_for_every_budget(cases, cost, budget):
    spectra = [spectrum(squares, cost) for squares in cases]
    spent = allocate(spectra, budget)
    kept = sum(math.fsum(s.squares[:r]) for r, s in zip(spent.ranks, spectra, strict=True))
    assert kept == pytest.approx(max(every_choice(spectra, budget))[0])


@settings(max_examples=100, deadline=None)
@given(cases=st.lists(st.tuples(SQUARES, st.integers(1, 7)), min_size=1, max_size=3), steps=st.integers(1, 8))
def test_what_is_spent_before_something_does_not_fit_is_spent_best(cases, steps):
    """The exact part of the claim: at the sizes that the greedy choice passes through."""
    spectra = [spectrum(squares, cost) for squares, cost in cases]
    assume(sum(len(s.squares) for s in spectra) >= steps)
    order = sorted(((-q / s.cost, i) for i, s in enumerate(spectra) for q in s.squares))[:steps]
    budget = sum(spectra[i].cost for _, i in order)
    spent = allocate(spectra, budget)
    kept = sum(math.fsum(s.squares[:r]) for r, s in zip(spent.ranks, spectra, strict=True))
    assert kept == pytest.approx(max(every_choice(spectra, budget))[0])


def test_a_case_by_hand():
    """Three numbers a direction in one, one in the other: by price, then what still fits."""
    spectra = [spectrum([30, 24], 3), spectrum([5, 4, 1], 1)]
    assert allocate(spectra, 3).ranks == (1, 0)  # 10 a number
    assert allocate(spectra, 6).ranks == (2, 0)  # 8 a number
    assert allocate(spectra, 8).ranks == (2, 2)
    # 10, 8 fit into 5 once; 2 numbers are left and go to what fits. The best, 30 + 9, is reached.
    assert allocate(spectra, 5).ranks == (1, 2)
    # Where the knapsack has a better answer the gap says how much there may be.
    unlucky = [spectrum([12], 2), spectrum([55], 10)]
    spent = allocate(unlucky, 10)
    assert spent.ranks == (1, 0)
    assert spent.gap == pytest.approx((12 + 5.5 * 8 - 12) / 67)


def test_directions_beyond_the_known_ones_are_asked_for():
    spectra = [spectrum([9, 8], 1, complete=False, beyond=3.0), spectrum([4, 1], 1)]
    assert allocate(spectra, 1).open == ()
    assert allocate(spectra, 3).open == (0,)


def test_curves():
    spectra = [spectrum([16, 4, 1], 10), spectrum([9, 0], 4)]
    assert uniform_error(spectra, 1) == pytest.approx(math.sqrt(5 / 30))
    assert uniform_parameters(spectra, 3) == 30 + 8
    points = error_curve(spectra, None)
    assert [(p.rank, p.num_parameters) for p in points] == [(1, 14), (2, 28), (3, 38)]
    assert points[-1].relative_error == 0.0
    best = best_curve(spectra, [p.num_parameters for p in points])
    assert [p.num_parameters for p in best] == [14, 24, 34]
    for own in best:
        exact = max(every_choice(spectra, own.num_parameters))[0]
        assert own.relative_error == pytest.approx(math.sqrt((30 - exact) / 30), abs=1e-12)


def test_curves_end_where_the_singular_values_do():
    spectra = [spectrum([16, 4], 10, complete=False, beyond=3.0), spectrum([9, 1], 10)]
    assert [p.rank for p in error_curve(spectra, None)] == [1, 2]
    assert uniform_error(spectra, 3) is None
    # The second direction of the first may be followed by one of the same size: what is smaller waits.
    best = best_curve(spectra, [10, 20, 30, 40])
    assert [p.num_parameters for p in best] == [10, 20, 30]
    assert best[-1].relative_error == pytest.approx(math.sqrt(4 / 33))
