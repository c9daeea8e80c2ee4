"""EMR-Merging: its exact cases, its laws, and the case in which the paper's rescaler does harm."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from merge_cases import case, close, dense, forms_of, updates

from intruscope.merge.emr import rescalers, unify
from intruscope.merge.options import MergeOptions
from intruscope.merge.spaces import make_space

KINDS = ["paper", "official", "l2"]


def tasks_of(*matrices):
    """One list per task of one float64 tensor per matrix, from one list per matrix."""
    return [[torch.as_tensor(part, dtype=torch.float64) for part in parts] for parts in matrices]


def restored(matrices, rescale, weights=None):
    """For each matrix, what stands for each task."""
    options = MergeOptions(weights=weights)
    found = [unify(parts, options) for parts in matrices]
    factors = rescalers((each.sums for each in found), rescale)
    return [[each.part(task, factor) for task, factor in enumerate(factors)] for each in found]


def naive(matrices, rescale):
    """The formulas with explicit loops over entries."""
    count = len(matrices[0])
    unified = []
    for parts in matrices:
        flat = [np.asarray(part).ravel() for part in parts]
        entries = []
        for column in zip(*flat, strict=True):
            sign = np.sign(sum(column))
            entries.append(
                sign * max([abs(value) for value in column if np.sign(value) == sign], default=0.0)
            )
        unified.append(np.array(entries))
    result = [[] for _ in matrices]
    for task in range(count):
        flat = [np.asarray(parts[task]).ravel() for parts in matrices]
        masked = [np.where(own * whole > 0, whole, 0.0) for own, whole in zip(flat, unified, strict=True)]
        if rescale == "l2":
            above = sum(float(own @ kept) for own, kept in zip(flat, masked, strict=True))
            below = sum(float(kept @ kept) for kept in masked)
        else:
            reduce = np.sum if rescale == "paper" else np.mean
            above = sum(reduce(np.abs(own)) for own in flat)
            below = sum(reduce(np.abs(kept)) for kept in masked)
        for at, kept in enumerate(masked):
            result[at].append((above / below * kept).reshape(matrices[at][task].shape))
    return result


@pytest.mark.parametrize("rescale", KINDS)
def test_emr_is_its_formula(rescale):
    rng = np.random.default_rng(0)
    matrices = tasks_of(*([rng.standard_normal((4, n)) for _ in range(3)] for n in (5, 2, 7)))
    for found, expected in zip(restored(matrices, rescale), naive(matrices, rescale), strict=True):
        for each, twin in zip(found, expected, strict=True):
            close(each.numpy(), twin, 1e-12)


@pytest.mark.parametrize("rescale", KINDS)
@pytest.mark.parametrize("space", ["dense", "core", "knots"])
def test_one_task_equal_tasks_and_tasks_that_share_nothing_are_exact(space, rescale):
    left, right = forms_of((6, 9), (3,))[0]
    upper, lower = left.clone(), left.clone()
    upper[3:], lower[:3] = 0.0, 0.0
    # Different sizes: in the bases of a space too, no coordinate is shared.
    apart = [(upper, right * (torch.arange(9) < 4)), (3.0 * lower, right * (torch.arange(9) >= 4))]
    for forms in ([(left, right)], [(left, right)] * 3, apart):
        made = make_space(forms, space=space)
        (found,) = restored([made.parts], rescale)
        for each, update in zip(found, updates(forms), strict=True):
            close(dense(made.restore(each)), update)


MATRICES = st.integers(1, 3).flatmap(
    lambda count: st.lists(
        arrays(np.float64, (count, 2, 3), elements=st.floats(-5, 5).map(lambda value: round(value, 2))),
        min_size=1,
        max_size=3,
    )
)


# -3.29 + 2.42 + 0.87 is a rounding error, of another sign in another order.
CANCELLED = np.array([-3.29, 2.42, 0.87]).reshape(3, 1, 1) * np.ones((3, 2, 3))


@settings(max_examples=60, deadline=None)
@example(matrices=[CANCELLED], tilt=[0, 2, 1])
@given(matrices=MATRICES, tilt=st.permutations(range(3)))
def test_laws_of_masks_and_rescalers(matrices, tilt):
    matrices = tasks_of(*matrices)
    count = len(matrices[0])
    found = [unify(parts, MergeOptions()) for parts in matrices]
    best = rescalers((each.sums for each in found), "l2")

    def distance(task, factor, masked=True):
        return sum(
            float(
                (parts[task] - (each.part(task, factor) if masked else factor * each.unified)).square().sum()
            )
            for parts, each in zip(matrices, found, strict=True)
        )

    for task in range(count):
        bare = distance(task, 1.0)
        # Masking never hurts, and the least-squares factor is the best there is.
        assert bare <= distance(task, 1.0, masked=False) * (1 + 1e-12) + 1e-12
        assert distance(task, best[task]) <= bare * (1 + 1e-12) + 1e-12
        for nearby in (0.99 * best[task], 1.01 * best[task]):
            assert distance(task, best[task]) <= distance(task, nearby) * (1 + 1e-12) + 1e-12
    # The order of tasks does not matter.
    order = [index for index in tilt if index < count]
    turned = [unify([parts[index] for index in order], MergeOptions()) for parts in matrices]
    for each, other in zip(found, turned, strict=True):
        torch.testing.assert_close(other.unified, each.unified, rtol=0, atol=1e-12)
    for rescale in KINDS:
        factors = rescalers((each.sums for each in found), rescale)
        np.testing.assert_allclose(
            rescalers((each.sums for each in turned), rescale), [factors[index] for index in order], rtol=1e-9
        )


def test_paper_and_official_agree_on_one_matrix_and_differ_on_two():
    rng = np.random.default_rng(2)
    small, large = ([torch.from_numpy(rng.standard_normal((n, n))) for _ in range(2)] for n in (2, 20))
    sums = [unify(parts, MergeOptions()).sums for parts in (small, large)]
    np.testing.assert_allclose(rescalers(sums[:1], "paper"), rescalers(sums[:1], "official"), rtol=1e-12)
    assert abs(rescalers(sums, "paper")[0] - rescalers(sums, "official")[0]) > 1e-3


def test_the_rescaler_of_the_paper_can_move_a_task_away():
    """τ_1 = (1, 1, -9), τ_2 = (1, 1, 10): the squared distance of the first rises from 81 to 121.5."""
    matrices = tasks_of([[1.0, 1.0, -9.0], [1.0, 1.0, 10.0]])
    (found,) = (unify(parts, MergeOptions()) for parts in matrices)
    np.testing.assert_allclose(found.unified, [1.0, 1.0, 10.0])
    (task, _) = matrices[0]

    def distance(factor):
        return float((task - found.part(0, factor)).square().sum())

    assert distance(1.0) == pytest.approx(81.0)
    (factor, _) = rescalers([found.sums], "paper")
    assert factor == pytest.approx(5.5)
    assert distance(factor) == pytest.approx(121.5)
    assert distance(rescalers([found.sums], "l2")[0]) == pytest.approx(81.0)


def test_each_task_is_multiplied_by_its_weight_first():
    parts = [torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[3.0, 1.0]]).double()]
    found = unify(parts, MergeOptions(weights=(4.0, 1.0)))
    np.testing.assert_allclose(found.unified, [[4.0, -8.0]])
    assert [mask.tolist() for mask in found.masks] == [[[True, True]], [[True, False]]]


def test_a_task_of_which_nothing_is_left_has_the_factor_one():
    parts = [torch.tensor([[1.0]]).double(), torch.tensor([[-3.0]]).double(), torch.zeros(1, 1).double()]
    found = unify(parts, MergeOptions())
    assert rescalers([found.sums], "paper")[::2] == (1.0, 1.0)
    assert float(found.part(0, 1.0)) == 0.0


def test_the_core_never_needs_the_whole_update():
    """Masks and the unified part have the size of the core, and still say something of each task."""
    forms = case("mixed ranks")
    made = make_space(forms, space="core")
    found = unify(made.parts, MergeOptions())
    assert found.unified.shape == made.parts[0].shape == (10, 10)
    factors = rescalers([found.sums], "l2")
    for task, update in enumerate(updates(forms)):
        rebuilt = dense(made.restore(found.part(task, factors[task])))
        error = np.linalg.norm(rebuilt - update) / np.linalg.norm(update)
        assert 0.0 < error < 1.0
