"""The threshold from which a random update leads: the formula, and planted directions on either side."""

import numpy as np
import pytest

from intruscope.studies.prediction import threshold


def spiked(rows, columns, spikes, seed=0):
    """A Gaussian bulk of edge about 1 + sqrt(rows / columns), and spikes far above it."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, len(spikes))))[0]
    right = np.linalg.qr(rng.normal(size=(columns, len(spikes))))[0]
    return rng.normal(size=(rows, columns)) / np.sqrt(columns) + (left * spikes) @ right.T


def test_far_above_a_bulk_of_zeros_a_spike_is_its_own_size():
    """Where nothing interferes, a direction is among the k leading ones from the k-th value on."""
    values = np.array([5.0, 4.0, 3.0] + [1e-6] * 47)
    assert threshold(values, (50, 80), 3) == pytest.approx(3.0, rel=1e-6)


def test_a_gaussian_bulk_helps_by_the_closed_form():
    """A spike of size theta on a square Gaussian matrix of unit edge variance shows at theta + 1/theta."""
    matrix = spiked(300, 300, np.linspace(8.0, 4.0, 10))
    values = np.linalg.svd(matrix, compute_uv=False)
    found = threshold(values, matrix.shape, 10)
    assert found + 1.0 / found == pytest.approx(values[9], rel=0.02)
    assert threshold(values, (300, 300), 10) == threshold(values[::-1], (300, 300), 10)


def leads(matrix, theta, k, seed):
    """How much of a random direction lies in the k leading left vectors once it is added with size theta."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=matrix.shape[0]), rng.normal(size=matrix.shape[1])
    left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
    vectors = np.linalg.svd(matrix + theta * np.outer(left, right), full_matrices=False)[0][:, :k]
    return float(np.square(vectors.T @ left).sum())


@pytest.mark.parametrize(("rows", "columns"), [(120, 120), (80, 200)])
def test_planted_directions_lead_above_it_and_do_not_below(rows, columns):
    matrix = spiked(rows, columns, np.linspace(7.0, 4.0, 5))
    found = threshold(np.linalg.svd(matrix, compute_uv=False), matrix.shape, 5)
    assert np.mean([leads(matrix, 1.2 * found, 5, seed) for seed in range(4)]) > 0.7
    assert np.mean([leads(matrix, 0.8 * found, 5, seed) for seed in range(4)]) < 0.3


def test_there_is_none_without_a_bulk():
    assert threshold([3.0, 2.0], (2, 9), 2) is None
    assert threshold([2.0] * 6, (6, 6), 3) is None
