"""The threshold of many arrays in two passes is that of one sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from intruscope.merge.trimming import NUM_BINS, count_magnitudes, global_thresholds, matrix_thresholds

FINITE = st.floats(-1e30, 1e30).filter(lambda value: value == 0.0 or abs(value) > 1e-35)


def by_sorting(arrays_, density):
    whole = np.sort(np.abs(np.concatenate([each.ravel() for each in arrays_])))[::-1]
    return whole[max(1, round(density * len(whole))) - 1]


def streamed(tasks, density):
    return global_thresholds(
        lambda: ([torch.from_numpy(task[index]) for task in tasks] for index in range(len(tasks[0]))), density
    )


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_the_threshold_is_the_entry_of_a_plain_sort(density, spread):
    rng = np.random.default_rng(1)
    tasks = [
        [rng.standard_normal((40, n)) * np.exp(spread * rng.standard_normal((40, n))) for n in (30, 1, 17)]
        for _ in range(3)
    ]
    found = streamed(tasks, density)
    assert found == tuple(by_sorting(task, density) for task in tasks)
    assert matrix_thresholds([torch.from_numpy(task[0]) for task in tasks], density) == tuple(
        by_sorting(task[:1], density) for task in tasks
    )


@settings(max_examples=60, deadline=None)
@given(
    first=arrays(np.float64, st.tuples(st.integers(0, 6), st.integers(1, 6)), elements=FINITE),
    second=arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=FINITE),
    density=st.floats(0.01, 0.99),
)
def test_ties_zeros_and_empty_arrays_are_no_exception(first, second, density):
    """Repeated magnitudes included: what is kept is what is kept after a sort."""
    (found,) = streamed([[first, second]], density)
    expected = by_sorting([first, second], density)
    assert found == expected


def test_values_that_differ_only_in_float64_are_told_apart():
    values = 1.0 + 1e-15 * np.arange(100)
    (found,) = streamed([[values[::-1].copy()]], 0.25)
    assert found == values[75]


def test_density_one_keeps_everything_and_needs_no_pass():
    def passes():
        raise AssertionError("nothing to count")

    assert global_thresholds(passes, 1.0) is None
    assert matrix_thresholds([torch.ones(2, 2)], 1.0) == (0.0,)


def test_mostly_zeros_are_not_collected():
    values = np.zeros((1000, 100))
    values[0, :10] = 1.0
    assert streamed([[values]], 0.5) == (0.0,)
    counts = count_magnitudes([torch.from_numpy(values)])
    assert counts.shape == (1, NUM_BINS)
    assert int(counts[0, 0]) == 99_990
