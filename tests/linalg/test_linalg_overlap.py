"""Two updates of one matrix: every figure against its definition on formed float64 matrices, every null
against draws of what it stands for."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from linalg_cases import orthonormal

from intruscope.errors import ShapeMismatch
from intruscope.linalg import sign_conflict
from intruscope.linalg.overlap import (
    chance_within,
    directions,
    inner_product,
    mean_overlap,
    one_sided_spread,
    outside_span,
    principal_angles,
    share_within,
    two_sided_spread,
)
from intruscope.linalg.random_spaces import largest_value_of_sum, random_smallest_angle, random_spaces
from intruscope.linalg.sign_conflict import sign_conflicts

SHAPES = [(30, 50), (50, 30), (6, 40), (40, 6)]


def factors(shape, rank, seed):
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.standard_normal(s)) for s in ((shape[0], rank), (rank, shape[1])))


def columns(size, count, seed):
    return torch.from_numpy(orthonormal(size, count, np.random.default_rng(seed)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("thin", [(True, True), (True, False), (False, True), (False, False)])
def test_inner_products_are_those_of_the_formed_updates(shape, thin, monkeypatch):
    monkeypatch.setattr("intruscope.linalg.overlap._BLOCK_ENTRIES", 64)  # several blocks of rows
    pairs = [factors(shape, rank, seed) for rank, seed in ((4, 0), (7, 1))]
    formed = [left @ right for left, right in pairs]
    forms = [pair if is_thin else dense for pair, dense, is_thin in zip(pairs, formed, thin, strict=True)]
    expected = float((formed[0] * formed[1]).sum())
    assert inner_product(*forms) == pytest.approx(expected, rel=1e-10)
    assert inner_product(*forms[::-1]) == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ShapeMismatch, match="shapes"):
        inner_product(forms[0], formed[1].T.contiguous())


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_are_the_singular_vectors_whatever_the_factors(shape):
    left, right = factors(shape, 4, 0)
    gauge = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 4)))
    padded = (torch.cat([left @ gauge, torch.zeros(shape[0], 3)], 1),
              torch.cat([torch.linalg.inv(gauge) @ right, torch.ones(3, shape[1])], 0))  # fmt: skip
    formed = left @ right
    u, s, vt = torch.linalg.svd(formed)
    for form in ((left, right), padded, formed):
        found = directions(form, None)
        assert found.is_whole and len(found.values_K) == 4
        torch.testing.assert_close(found.values_K, s[:4], rtol=1e-10, atol=0)
        torch.testing.assert_close((found.left_OK * found.values_K) @ found.right_IK.T, formed)
        two = directions(form, 2)
        assert not two.is_whole
        assert float(principal_angles(two.left_OK, u[:, :2]).max()) < 1e-9
        assert float(principal_angles(two.right_IK, vt[:2].T).max()) < 1e-9
    assert len(directions((left * 0, right), None).values_K) == 0
    assert len(directions(formed * 0, 3).values_K) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_thin", [True, False])
def test_the_share_within_two_spaces_is_that_of_the_projected_update(shape, is_thin):
    left, right = columns(shape[0], 3, 0), columns(shape[1], 4, 1)
    in_left, in_right = left @ left.T, right @ right.T
    factor_left, factor_right = factors(shape, 5, 2)

    def share(up, down):
        formed = up @ down
        form = (up, down) if is_thin else formed
        return share_within(form, left, right, norm=float(formed.norm())), formed

    found, formed = share(factor_left, factor_right)
    expected = float((in_left @ formed @ in_right).square().sum() / formed.square().sum())
    assert found == pytest.approx(expected, rel=1e-10) and 0.001 < expected < 0.9
    assert share(in_left @ factor_left, factor_right @ in_right)[0] == pytest.approx(1.0)
    for up, down in (
        (factor_left - in_left @ factor_left, factor_right),
        (factor_left, factor_right - factor_right @ in_right),
    ):  # off either space is enough
        assert share(up, down)[0] < 1e-25
    assert share_within(formed * 0, left, right, norm=0.0) is None


def test_the_share_by_chance_is_the_mean_over_random_spaces():
    update = torch.outer(torch.ones(12), torch.arange(1.0, 9.0)).double()
    shares = [
        share_within(update, columns(12, 3, seed), columns(8, 2, 1000 + seed), norm=float(update.norm()))
        for seed in range(400)
    ]
    error = np.std(shares) / 20
    assert abs(np.mean(shares) - chance_within((12, 8), 3, 2)) < 4 * error < 0.03


@pytest.mark.parametrize(("first", "second"), [(3, 3), (3, 5), (5, 3)])
def test_principal_angles_are_scipys(first, second):
    one, two = columns(40, first, 0), columns(40, second, 1)
    # A direction that both share, and one that is turned by a tiny, known angle.
    two[:, 0] = one[:, 0]
    two = torch.linalg.qr(two)[0]
    found = principal_angles(one, two)
    expected = np.sort(scipy.linalg.subspace_angles(one.numpy(), two.numpy()))
    np.testing.assert_allclose(found, expected, atol=2e-8)  # which is what scipy resolves near zero
    assert len(found) == 3 and float(found[0]) < 1e-14
    assert mean_overlap(found) == pytest.approx(
        float((one.T @ two).square().sum()) / min(first, second), rel=1e-12
    )


def test_a_tiny_angle_keeps_its_digits():
    one, normal = columns(30, 3, 0).split([2, 1], dim=1)
    turned = one.clone()
    turned[:, 1:] = math.cos(1e-9) * one[:, 1:] + math.sin(1e-9) * normal
    found = principal_angles(one, turned)
    assert float(found[1]) == pytest.approx(1e-9, rel=1e-5)  # from its cosine it would be 0 or 2e-8
    assert mean_overlap(found[:0]) is None


def test_random_spaces_follow_the_law_of_random_spaces():
    size, ranks, draws = 40, (3, 5, 4), 600
    generator, rng = np.random.default_rng(0), np.random.default_rng(1)
    quick, slow = [], []
    for _ in range(draws):
        bases = random_spaces(size, ranks, generator)
        for basis, rank in zip(bases, ranks, strict=True):
            torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
        full = [torch.from_numpy(orthonormal(size, rank, rng)) for rank in ranks]
        for found, drawn in ((quick, bases), (slow, full)):
            products = [drawn[0].T @ drawn[1], drawn[1].T @ drawn[2]]
            # A triple product sees more than pairs: whether the three lie to each other as they should.
            cycle = torch.trace(products[0] @ products[1] @ (drawn[2].T @ drawn[0]))
            found.append(
                [float(p.square().sum()) for p in products]
                + [float(torch.linalg.matrix_norm(products[0], 2)), float(cycle)]
            )
    quick, slow = np.array(quick), np.array(slow)
    error = np.sqrt((quick.var(axis=0) + slow.var(axis=0)) / draws)
    assert (np.abs(quick.mean(axis=0) - slow.mean(axis=0)) < 4 * error).all()
    # E‖Q₁ᵀ Q₂‖² = r₁ r₂ / n: the closed form of the null of the overlap.
    exact = np.array([ranks[0] * ranks[1], ranks[1] * ranks[2]]) / size
    assert (np.abs(quick[:, :2].mean(axis=0) - exact) < 4 * quick[:, :2].std(axis=0) / draws**0.5).all()
    smallest = np.arccos(slow[:, 2]).mean()
    assert random_smallest_angle(size, 3, 5) == pytest.approx(smallest, abs=0.02)
    assert random_smallest_angle(6, 4, 5) == pytest.approx(0.0, abs=1e-6)  # they must meet


def test_an_even_mixture_of_any_number_of_directions_is_not_new():
    basis_OK, outside_O1 = columns(40, 7, 0).split([6, 1], dim=1)
    for count in (2, 4, 6):  # of six, each has a cosine of .41 with their mixture
        mixture_O1 = basis_OK[:, :count].sum(dim=1, keepdim=True) / math.sqrt(count)
        assert not outside_span(mixture_O1, basis_OK).any()
        assert outside_span(mixture_O1, basis_OK[:, : count // 2 - 1]).all()
    for share, is_new in ((0.49, True), (0.51, False)):
        tilted_O1 = math.sqrt(share) * basis_OK[:, :1] + math.sqrt(1.0 - share) * outside_O1
        assert outside_span(tilted_O1, basis_OK).item() is is_new
        # The others need not be orthogonal, and two of nearly one direction do not span a second one.
        bent_O1 = basis_OK[:, :1] + 0.05 * outside_O1
        others_OM = torch.cat([basis_OK[:, :1], bent_O1 / bent_O1.norm()], dim=1)
        assert outside_span(outside_O1, others_OM).all()
        skewed_OM = basis_OK @ (torch.eye(6, dtype=torch.float64) + 0.5)
        assert outside_span(tilted_O1, skewed_OM / skewed_OM.norm(dim=0)).item() is is_new
    assert outside_span(basis_OK, basis_OK[:, :0]).all() and not len(outside_span(basis_OK[:, :0], basis_OK))


def test_spreads_are_those_of_drawn_updates():
    """Both nulls of the cosine, against updates that are drawn and formed."""
    shape, rng = (24, 40), np.random.default_rng(0)
    values = [torch.tensor([3.0, 1.0, 0.5]).double(), torch.tensor([2.0, 1.5]).double()]
    rows = [columns(40, 3, 5), columns(40, 2, 6)]
    rows[1][:, 0] = rows[0][:, 0]  # something in common, in the direction of the largest values
    rows[1] = torch.linalg.qr(rows[1])[0]

    def made(index, right):
        left = torch.from_numpy(orthonormal(24, len(values[index]), rng))
        return (left * values[index]) @ right.T

    one_sided, two_sided = [], []
    for _ in range(1500):
        for found, sides in (
            (one_sided, rows),
            (two_sided, [torch.from_numpy(orthonormal(40, len(v), rng)) for v in values]),
        ):
            first, second = made(0, sides[0]), made(1, sides[1])
            found.append(float((first * second).sum() / (first.norm() * second.norm())))
    known = [directions(made(i, rows[i]), None) for i in (0, 1)]
    assert one_sided_spread(*known) == pytest.approx(np.std(one_sided), rel=0.08)
    assert two_sided_spread(shape) == pytest.approx(np.std(two_sided), rel=0.08)
    assert one_sided_spread(*known) > 3 * two_sided_spread(shape)
    assert one_sided_spread(known[0], directions(made(1, rows[1]), 1)) is None


def test_the_largest_value_of_a_sum_needs_coordinates_alone():
    pairs = [factors((30, 20), rank, seed) for rank, seed in ((3, 0), (2, 1))]
    known = [directions(pair, None) for pair in pairs]
    formed = sum(left @ right for left, right in pairs)
    expected = float(torch.linalg.matrix_norm(formed, 2))
    values = [each.values_K for each in known]
    whole = ([each.left_OK for each in known], [each.right_IK for each in known])
    triangles = [torch.linalg.qr(torch.cat(side, dim=1), mode="r")[1].split([3, 2], dim=1) for side in whole]
    for left, right in (whole, triangles):
        assert largest_value_of_sum(left, values, right) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_sign_conflicts_are_counted(shape, monkeypatch):
    monkeypatch.setattr(sign_conflict, "_BLOCK_ENTRIES", 150)
    pairs = [factors(shape, rank, seed) for rank, seed in ((4, 0), (7, 1), (2, 2))]
    pairs[2][0][0] = 0.0  # a row without signs
    formed = [left @ right for left, right in pairs]
    found = sign_conflicts([pairs[0], formed[1], pairs[2]])
    for i in range(3):
        for j in range(3):
            signs = torch.sign(formed[i]) * torch.sign(formed[j])
            expected = int((signs < 0).sum()) / int((signs != 0).sum())
            assert float(found.share_TT[i, j]) == pytest.approx(expected, abs=1e-15)
    assert not found.error_TT.any()
    nothing = sign_conflicts([pairs[0], (pairs[1][0] * 0, pairs[1][1])])
    assert bool(nothing.share_TT[0, 1].isnan())


def test_sampled_signs_err_as_much_as_they_say(monkeypatch):
    """On a matrix that could be counted, with shared A: rows and columns then differ by more than chance."""
    monkeypatch.setattr(sign_conflict, "EXACT_ENTRIES", 0)
    monkeypatch.setattr(sign_conflict, "SAMPLE_SIDE", 60)
    (left, right), (other, _) = factors((300, 400), 3, 0), factors((300, 400), 3, 1)
    formed = left @ right, (left + other) @ right
    exact = float((formed[0].sign() * formed[1].sign() < 0).double().mean())
    found = [sign_conflicts([(left, right), (left + other, right)], seed=seed) for seed in range(150)]
    shares = np.array([float(each.share_TT[0, 1]) for each in found])
    errors = np.array([float(each.error_TT[0, 1]) for each in found])
    assert 0.1 < exact < 0.4
    assert abs(shares.mean() - exact) < 4 * shares.std() / 150**0.5
    assert np.sqrt((errors**2).mean()) == pytest.approx(shares.std(), rel=0.2)
    spread = np.array([float(each.shared_a_spread_TT[0, 1]) for each in found])
    monkeypatch.setattr(sign_conflict, "EXACT_ENTRIES", 1 << 22)
    counted = sign_conflicts([(left, right), (left + other, right)])
    assert spread.mean() == pytest.approx(float(counted.shared_a_spread_TT[0, 1]), rel=0.05)


def test_the_spread_of_sign_conflict_is_that_of_unrelated_b():
    """The same A and B drawn anew: how far the conflict is from a half."""
    left, right = factors((60, 300), 3, 0)
    rng = np.random.default_rng(7)
    conflicts, spreads = [], []
    for _ in range(200):
        other = torch.from_numpy(rng.standard_normal((60, 3)))
        found = sign_conflicts([(left, right), (other, right)])
        conflicts.append(float(found.share_TT[0, 1]))
        spreads.append(float(found.shared_a_spread_TT[0, 1]))
    assert np.mean(conflicts) == pytest.approx(0.5, abs=4 * np.std(conflicts) / 200**0.5)
    assert np.sqrt(np.mean(np.square(spreads))) == pytest.approx(np.std(conflicts), rel=0.15)
    assert np.std(conflicts) > 3 * 0.5 / math.sqrt(60 * 300)  # unlike independent A, whose spread this is
