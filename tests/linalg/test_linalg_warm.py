"""From a near start the top is found again, its errors hold, and nothing can hide from the count."""

import numpy as np
import pytest
import torch
from linalg_cases import orthonormal, with_spectrum

from intruscope.linalg import warm
from intruscope.linalg.operators import Operator
from intruscope.linalg.warm import gram_of, gram_with, start_from, warm_triplets

SHAPES = [(90, 90), (160, 90), (90, 160)]
K = 4


def spectrum(size):
    return 0.5 + 3.0 * np.exp(-np.arange(size) / 6.0)


def exact(matrix):
    return np.linalg.svd(matrix.numpy(), full_matrices=False)


def block(matrix, seed=0):
    left, _, right = exact(matrix)
    return start_from(
        torch.from_numpy(left[:, :K].copy()), torch.from_numpy(right[:K].T.copy()), k=K, seed=seed
    )


def look(matrix, start):
    return warm_triplets(Operator.viewing(matrix), gram_of(matrix), start, K)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.0, 1e-4, 0.02, 0.3])
def test_values_and_vectors_are_those_of_the_dense_twin(shape, size):
    rng = np.random.default_rng(1)
    base = torch.from_numpy(with_spectrum(spectrum(90), *shape, rng))
    change = size * orthonormal(shape[0], 3, rng) @ orthonormal(shape[1], 3, rng).T
    tuned = base + torch.from_numpy(change)
    found = look(tuned, block(base))
    assert found is not None
    left, values, right = exact(tuned)
    np.testing.assert_allclose(found.triplets.singular_values, values[:K], rtol=1e-4)
    for got, true, bound in (
        (found.triplets.left_MK.numpy(), left[:, :K], found.triplets.left_error),
        (found.triplets.right_NK.numpy(), right[:K].T, found.triplets.right_error),
    ):
        assert got.shape == true.shape
        sines = np.linalg.norm(got - true * (got * true).sum(axis=0), axis=0)
        assert (sines <= bound.numpy() + 1e-7).all()
        assert bound.max() <= 1e-2 and sines.max() < 1e-2
    assert not found.triplets.degenerate.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_direction_that_the_start_knows_nothing_of_is_found_or_refused(shape):
    """The new one is orthogonal to the start, guard included: only the count can tell that it is there."""
    rng = np.random.default_rng(2)
    base = torch.from_numpy(with_spectrum(spectrum(90), *shape, rng))
    tall = shape[0] >= shape[1]
    side = shape[1] if tall else shape[0]
    start = block(base)
    left, values, right = exact(base)
    # The smallest direction of the base becomes the largest of all; nothing else moves.
    hidden = torch.from_numpy(np.outer(left[:, -1], right[-1]))
    near = torch.from_numpy((right[-1] if tall else left[:, -1]).copy())
    start = start - torch.outer(near, near @ start)
    tuned = base + 10.0 * values[0] * hidden
    assert start.shape[0] == side and float((near @ start).abs().max()) < 1e-12
    found = look(tuned, start)
    if found is not None:
        truth = exact(tuned)[1][:K]
        np.testing.assert_allclose(found.triplets.singular_values, truth, rtol=1e-4)
    assert look(base, start) is not None


def test_a_pair_that_cannot_be_parted_is_said_to_be_one():
    rng = np.random.default_rng(3)
    values = spectrum(90)
    values[2] = values[1]
    base = torch.from_numpy(with_spectrum(values, 120, 90, rng))
    found = look(base, block(base))
    assert found is None or found.triplets.degenerate.tolist() == [False, True, True, False]


def test_too_small_a_matrix_is_left_to_the_dense_path():
    matrix = torch.randn((12, 9), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert look(matrix, block(matrix)) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gram_of_an_update_is_that_of_the_sum(shape):
    rng = np.random.default_rng(4)
    base = torch.from_numpy(rng.standard_normal(shape))
    left, right = rng.standard_normal((shape[0], 5)), rng.standard_normal((5, shape[1]))
    left, right = torch.from_numpy(left), torch.from_numpy(right)
    whole = base + left @ right
    twin = whole.T @ whole if shape[0] >= shape[1] else whole @ whole.T
    torch.testing.assert_close(gram_of(whole), twin)
    torch.testing.assert_close(gram_with(gram_of(base), base, left, right), twin, rtol=1e-12, atol=1e-10)


def test_what_another_round_will_improve_is_not_proved_first(monkeypatch):
    """A start far off needs more than one round; only the last is worth a factorisation, and it is kept."""
    rng = np.random.default_rng(5)
    base = torch.from_numpy(with_spectrum(1.0 + spectrum(90), 160, 90, rng))
    tuned = base + 0.5 * torch.from_numpy(rng.standard_normal((160, 90))) / 90**0.5
    proofs, rounds = [], []
    proved, ritz = warm._proved, warm._rayleigh_ritz
    monkeypatch.setattr(warm, "_proved", lambda *given: proofs.append(proved(*given)) or proofs[-1])
    monkeypatch.setattr(warm, "_rayleigh_ritz", lambda *given: rounds.append(1) or ritz(*given))
    found = look(tuned, block(base))
    assert len(rounds) > 1 and proofs == [True]
    assert found is not None
    np.testing.assert_allclose(found.triplets.singular_values, exact(tuned)[1][:K], rtol=1e-4)


def test_a_floor_that_more_eigenvalues_reach_is_not_proved():
    values = torch.tensor([9.0, 4.0, 1.0, 0.5], dtype=torch.float64)
    gram, vectors = torch.diag(values), torch.eye(4, dtype=torch.float64)
    for floor, count, is_proved in ((2.0, 2, True), (2.0, 1, False), (0.9, 2, False), (0.9, 3, True)):
        assert warm._proved(gram, values[:count], vectors[:, :count], floor) is is_proved
