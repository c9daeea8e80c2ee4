"""Intruders by chance, sampled from spectra alone, against rotated updates and dense decompositions."""

import numpy as np
import pytest
import torch

from intruscope.linalg.chance import intruders_by_chance, modelled_values
from intruscope.linalg.operators import Operator
from intruscope.linalg.rotation import rotate_dense

K, EPSILON, TRIALS = 10, 0.5, 12


def matrix(rows, columns, seed):
    """A weight-like spectrum: a power law of leading values over a bulk, in random directions."""
    rng = np.random.default_rng(seed)
    count = min(rows, columns)
    values = 6.0 * np.arange(1, count + 1) ** -0.3 * np.linspace(1.0, 0.1, count)
    left = np.linalg.qr(rng.normal(size=(rows, count)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, count)))[0]
    return torch.from_numpy(left * values @ right.T), torch.from_numpy(values)


def update(rows, columns, values, seed):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(columns, len(values))))[0]
    return torch.from_numpy(left * np.asarray(values) @ right.T)


def naive_counts(base, change, side):
    """What ``--null`` does, by dense decompositions: rotate the update, compare all vectors with all."""
    if side == "right":
        base, change = base.T, change.T
    before = torch.linalg.svd(base, full_matrices=False)[0]
    counts = []
    for seed in range(TRIALS):
        after = torch.linalg.svd(base + rotate_dense(change, seed=seed), full_matrices=False)[0][:, :K]
        counts.append(int(((before.T @ after).abs().amax(dim=0) < EPSILON).sum()))
    return np.array(counts)


@pytest.mark.parametrize("shape", [(128, 192), (192, 128)], ids=["wide", "tall"])
@pytest.mark.parametrize(
    "values",
    [np.linspace(7.0, 2.0, 8), 5.0 * np.arange(1, 129) ** -0.5],
    ids=["low-rank", "full-rank"],
)
def test_spectra_alone_count_what_rotated_updates_do(shape, values):
    base, base_values = matrix(*shape, 0)
    change = update(*shape, values, 1)
    found = intruders_by_chance(
        base_values,
        torch.from_numpy(values),
        shape,
        k=K,
        epsilon=EPSILON,
        sides=("left", "right"),
        trials=TRIALS,
    )
    for side in ("left", "right"):
        counts, truth = np.array(found[side]), naive_counts(base, change, side)
        assert truth.mean() > 0.5  # the case asks something
        error = ((counts.var(ddof=1) + truth.var(ddof=1)) / TRIALS) ** 0.5
        assert abs(counts.mean() - truth.mean()) < 3.5 * error + 0.25, (side, counts, truth)
    doubled = intruders_by_chance(
        base_values, torch.from_numpy(2 * values), shape, k=K, epsilon=EPSILON, trials=TRIALS
    )
    assert np.mean(doubled["left"]) > np.mean(found["left"]) + 1


def test_the_krylov_space_and_the_dense_path_agree():
    """The same draws, once by a Krylov space and once by an SVD: k decides which is taken."""
    _, values = matrix(256, 300, 3)
    change = torch.linspace(6.0, 2.0, 8, dtype=torch.float64)
    krylov = intruders_by_chance(values, change, (256, 300), k=K, epsilon=EPSILON, trials=8)["left"]
    counts = []
    for seed in range(8):
        rotated = rotate_dense(update(256, 300, change.numpy(), seed), seed=seed)
        left = torch.linalg.svd(torch.diag(values) @ torch.eye(256, 300, dtype=torch.float64) + rotated)[0]
        counts.append(int((left[:, :K].abs().amax(dim=0) < EPSILON).sum()))
    assert np.mean(krylov) == pytest.approx(np.mean(counts), abs=0.8)


def test_no_update_makes_none_and_equal_seeds_give_equal_counts():
    _, values = matrix(96, 120, 4)
    nothing = torch.zeros(8, dtype=torch.float64)
    assert intruders_by_chance(values, nothing, (96, 120), k=K, epsilon=EPSILON)["left"] == (0, 0, 0, 0)
    strong = torch.full((4,), 50.0, dtype=torch.float64)
    first = intruders_by_chance(values, strong, (96, 120), k=K, epsilon=EPSILON, seed=5)
    assert first == intruders_by_chance(values, strong, (96, 120), k=K, epsilon=EPSILON, seed=5)
    assert first["left"] == (4, 4, 4, 4)


def test_a_large_dense_question_is_declined():
    values = torch.ones(2000, dtype=torch.float64)
    assert intruders_by_chance(values, values[:8], (2000, 2000), k=500, epsilon=EPSILON) is None


def test_modelled_values_keep_the_leading_ones_and_the_energy():
    base, values = matrix(300, 400, 5)
    total = float(values.square().sum().sqrt())
    found = modelled_values(Operator.of(base), total, seed=1)
    assert len(found) == 300
    assert float(found.square().sum().sqrt()) == pytest.approx(total, rel=0.02)
    torch.testing.assert_close(found[:10], values[:10], rtol=0.02, atol=0)
    assert bool((found.diff() <= 1e-12).all())
    change = torch.linspace(7.0, 2.0, 8, dtype=torch.float64)
    exact, modelled = (
        np.mean(intruders_by_chance(each, change, (300, 400), k=K, epsilon=EPSILON, trials=16)["left"])
        for each in (values, found)
    )
    assert modelled == pytest.approx(exact, abs=1.0)
