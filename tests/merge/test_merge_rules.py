"""Each rule against its published formula on explicit updates, and the laws that it obeys."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import SHAPES, SPECTRAL, case, close, coordinates, dense, forms_of, merged, ties, updates

from intruscope.errors import UsageError
from intruscope.merge.options import MergeOptions, RuleName
from intruscope.merge.rules import (
    RULES,
    Place,
    merge_dare_ties,
    merge_matrices,
    merge_space,
    merge_ties,
    rule_named,
)
from intruscope.merge.spaces import make_space

ALL_SPACES = ["dense", "core", "knots"]
ONE_UPDATE = [name for name, rule in RULES.items() if rule.merge is not None and rule.space is None]
WEIGHTS = (1.0, -0.5, 2.0)


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("rule", SPECTRAL)
@pytest.mark.parametrize("name", SHAPES)
def test_spectral_rules_are_their_dense_formulas(name, rule, space):
    forms = case(name)
    weights = WEIGHTS[: len(forms)]
    expected = SPECTRAL[rule](updates(forms), weights=weights, scaling=0.6)
    close(merged(forms, rule, MergeOptions(weights=weights, scaling=0.6), space=space), expected)


@pytest.mark.parametrize(
    ("name", "basis"),
    [
        (name, basis)
        for name, (_, ranks) in SHAPES.items()
        for basis in ("update", "official")
        if basis == "update" or None not in ranks
    ],
)
@pytest.mark.parametrize("space", ALL_SPACES)
def test_ties_is_its_dense_formula_in_every_space(name, space, basis):
    forms = case(name)
    weights = WEIGHTS[: len(forms)]
    left, parts, right = coordinates(forms, space, basis)
    expected = left @ ties(parts, density=0.3, weights=weights, scaling=0.6) @ right
    options = MergeOptions(density=0.3, weights=weights, scaling=0.6)
    close(merged(forms, "ties", options, space=space, basis=basis), expected)
    if space == "knots":
        close(merged(forms, "knots", options, space=space, basis=basis), expected)


@pytest.mark.parametrize("rule", SPECTRAL)
def test_weights_that_sum_to_zero_are_fine_where_nothing_divides_by_their_sum(rule):
    forms = case("mixed ranks")[:2]
    options = MergeOptions(weights=(1.0, -1.0), density=1.0)
    close(merged(forms, rule, options), SPECTRAL[rule](updates(forms), weights=(1.0, -1.0)))
    left, parts, right = coordinates(forms, "core", "update")
    close(merged(forms, "ties", options), left @ ties(parts, weights=(1.0, -1.0)) @ right)


def test_pico_in_the_published_basis_calibrates_the_joined_left_factors():
    forms = case("mixed ranks")
    joined = np.hstack([left.numpy() for left, _ in forms])
    expected = SPECTRAL["pico"](updates(forms), joined=joined)
    for space in ("core", "knots"):
        close(merged(forms, "pico", MergeOptions(), space=space, basis="official"), expected)


@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_the_floor_of_svc_is_that_of_its_formula(floor):
    forms = case("mixed ranks")
    expected = SPECTRAL["svc"](updates(forms), floor=floor)
    close(merged(forms, "svc", MergeOptions(floor=floor)), expected)


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("rule", [name for name in ONE_UPDATE if name != "iso"])
def test_one_fine_tune_is_returned(rule, space):
    form = case("mixed ranks")[1]
    close(merged([form], rule, MergeOptions(density=1.0), space=space), dense(form))


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("rule", ["mean", "ties", "tsv", "svc"])
def test_copies_of_one_fine_tune_are_merged_into_it(rule, space):
    form = case("mixed ranks")[2]
    close(merged([form] * 4, rule, MergeOptions(density=1.0), space=space), dense(form))


def test_knots_with_a_linear_rule_is_task_arithmetic():
    """Only nonlinear rules can gain from the space."""
    forms = case("more ranks than rows")
    found = merged(forms, "sum", MergeOptions(scaling=0.3), space="knots")
    close(found, 0.3 * sum(updates(forms)))


def orthogonal_blocks():
    """Three fine-tunes that share no input and no output, of different sizes."""
    forms = forms_of((4, 5), (2, 1, 2), seed=3)
    placed = []
    for index, (left, right) in enumerate(forms):
        wide_left, wide_right = left.new_zeros(12, left.shape[1]), right.new_zeros(right.shape[0], 15)
        wide_left[4 * index : 4 * index + 4] = left
        wide_right[:, 5 * index : 5 * index + 5] = right
        placed.append((wide_left, wide_right))
    return placed


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("rule", ["tsv", "svc", "ties"])
def test_fine_tunes_that_share_nothing_are_added_up(rule, space):
    forms = orthogonal_blocks()
    close(merged(forms, rule, MergeOptions(density=1.0), space=space), sum(updates(forms)))


def test_svc_below_its_floor_of_one_amplifies_what_only_one_fine_tune_has():
    """An orthogonal pair at 0.5: the divisor is (1 + 0.5) / 2."""
    forms = orthogonal_blocks()[:2]
    close(merged(forms, "svc", MergeOptions(floor=0.5)), sum(updates(forms)) / 0.75)


def test_iso_levels_the_singular_values_and_keeps_their_sum():
    forms = case("mixed ranks")
    before = np.linalg.svd(sum(updates(forms)), compute_uv=False)
    for space in ALL_SPACES:
        after = np.linalg.svd(merged(forms, "iso", MergeOptions(), space=space), compute_uv=False)
        np.testing.assert_allclose(after[:10], before.sum() / 10, rtol=1e-10)
        assert after[10:].max() < 1e-10 * after[0]


def test_tsv_takes_no_more_triplets_than_fit():
    """Four full-rank updates of 8 x 11: two triplets each."""
    forms = forms_of((8, 11), (None,) * 4)
    found = merged(forms, "tsv", MergeOptions(), space="core")
    close(found, SPECTRAL["tsv"](updates(forms)))
    values = np.linalg.svd(found, compute_uv=False)
    kept = np.concatenate([np.linalg.svd(update, compute_uv=False)[:2] for update in updates(forms)])
    np.testing.assert_allclose(values, np.sort(kept)[::-1], rtol=1e-10)


def test_pico_turns_a_shared_direction_down():
    """Two updates share one output direction and have one each for themselves, all of equal size."""
    eye = torch.eye(6, dtype=torch.float64)
    forms = [(eye[:, [0, 1]], eye[[0, 1]]), (eye[:, [0, 2]], eye[[2, 3]])]
    found = merged(forms, "pico", MergeOptions())
    # Shares 1/2, 1/4, 1/4: factors 1 / (1 + p) of 2/3, 4/5, 4/5, then the mean norm, sqrt(2).
    expected = np.zeros((6, 6))
    expected[[0, 0], [0, 2]] = 2 / 3
    expected[[1, 2], [1, 3]] = 4 / 5
    close(found, expected * np.sqrt(2.0) / np.linalg.norm(expected))


def hand(*rows):
    return [torch.tensor([row], dtype=torch.float64) for row in rows]


def test_ties_by_hand():
    parts = hand([4.0, -1.0, 3.0, 0.5], [-2.0, -3.0, 5.0, 0.0])
    # All kept: signs +, -, +, +; means of those that agree.
    found = merge_ties(parts, MergeOptions(density=1.0))
    np.testing.assert_allclose(found, [[4.0, -2.0, 4.0, 0.5]])
    # The larger half of each: {4, 3} and {-3, 5}.
    found = merge_ties(parts, MergeOptions(density=0.5))
    np.testing.assert_allclose(found, [[4.0, -3.0, 4.0, 0.0]])
    # Weights 1 and 3: 4 - 6 turns the first sign; each mean is over the weights that agree.
    found = merge_ties(parts, MergeOptions(density=1.0, weights=(1.0, 3.0)))
    np.testing.assert_allclose(found, [[-2.0, -2.5, 4.5, 0.5]])
    # Entries that cancel have no sign.
    found = merge_ties(hand([1.0, 2.0], [-1.0, 2.0]), MergeOptions(density=1.0))
    np.testing.assert_allclose(found, [[0.0, 2.0]])


def test_entries_that_cancel_up_to_rounding_elect_no_sign():
    # -3.29 + 2.42 + 0.87 is a rounding error, of another sign in another order.
    parts = [torch.tensor([[value, value]], dtype=torch.float64) for value in (-3.29, 2.42, 0.87)]
    options = MergeOptions(density=1.0)
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0)):
        assert merge_ties([parts[index] for index in order], options).tolist() == [[0.0, 0.0]]
    parts[0] = parts[0] + 1e-9  # a sum that is no rounding error still decides
    assert merge_ties(parts, options).tolist() == [[pytest.approx((2.42 + 0.87) / 2)] * 2]


def test_dare_keeps_the_expected_value_and_depends_on_names_only():
    part = torch.linspace(1.0, 2.0, 50, dtype=torch.float64).reshape(5, 10)

    def once(seed, name="m", label="a"):
        return merge_dare_ties(
            [part], MergeOptions(density=0.25, seed=seed), Place(name=name, labels=(label,))
        )

    drawn = torch.stack([once(seed) for seed in range(400)])
    kept = drawn != 0.0
    torch.testing.assert_close(drawn[kept], (4.0 * part).expand(400, 5, 10)[kept])
    # 400 draws at 1/4: a standard error of 0.022 for each entry, and of 0.003 over all.
    assert float(kept.double().mean()) == pytest.approx(0.25, abs=0.012)
    assert float((kept.double().mean(dim=0) - 0.25).abs().max()) < 0.1
    assert torch.equal(once(1), once(1))
    others = (once(2), once(1, name="n"), once(1, label="b"))
    assert not any(torch.equal(once(1), other) for other in others)


def test_dare_ties_drops_each_fine_tune_by_itself():
    parts = hand([1.0] * 200, [-3.0] * 200)
    options, labels = MergeOptions(density=0.5, seed=4), ("a", "b")
    alone = [
        merge_dare_ties([part], options, Place(name="m", labels=(label,)))
        for part, label in zip(parts, labels, strict=True)
    ]
    both = merge_dare_ties(parts, options, Place(name="m", labels=labels))
    np.testing.assert_allclose(both, ties([each.numpy() for each in alone]))
    assert set(both.flatten().tolist()) == {0.0, 2.0, -6.0}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rule=st.sampled_from([name for name in ONE_UPDATE if not RULES[name].elementwise]),
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
)
def test_rules_that_are_not_elementwise_turn_with_the_updates(seed, rule, rows, columns):
    """Q ΔW Pᵀ are merged into Q (merged) Pᵀ: this is why these rules do not depend on the space."""
    forms = forms_of((rows, columns), (2, 3), seed)
    rng = np.random.default_rng(seed)
    q, p = (torch.from_numpy(np.linalg.qr(rng.standard_normal((n, n)))[0]) for n in (rows, columns))
    turned = [(q @ left, right @ p.T) for left, right in forms]
    expected = q.numpy() @ merged(forms, rule, MergeOptions(), space="dense") @ p.numpy().T
    close(merged(turned, rule, MergeOptions(), space="dense"), expected, 1e-8)


def several_matrices():
    """Matrices of different size, so that one threshold for all differs from one for each."""
    scaled = {"a": 1.0, "b": 5.0, "c": 0.2}
    return {
        name: [(size * left, right) for left, right in forms_of((9, 7 + seed), (2, 3), seed)]
        for seed, (name, size) in enumerate(scaled.items())
    }


@pytest.mark.parametrize("trim", ["global", "matrix"])
@pytest.mark.parametrize("space", ALL_SPACES)
def test_ties_ranks_entries_over_all_matrices_or_within_each(space, trim):
    matrices = several_matrices()
    seen = []

    def spaces():
        seen.append(space)
        return ((name, make_space(forms, space=space)) for name, forms in matrices.items())

    options = MergeOptions(density=0.3, trim=trim)
    found = dict(merge_matrices(spaces, RULES["ties"], options))
    assert list(found) == list(matrices)
    assert len(seen) == (3 if trim == "global" else 1)
    bases = {name: coordinates(forms, space, "update") for name, forms in matrices.items()}
    if trim == "global":
        joined = [np.concatenate([bases[name][1][t].ravel() for name in matrices]) for t in range(2)]
        whole = ties(joined, density=0.3)
        sizes = [bases[name][1][0].size for name in matrices]
        pieces = np.split(whole, np.cumsum(sizes)[:-1])
    for index, (name, (left, parts, right)) in enumerate(bases.items()):
        expected = pieces[index].reshape(parts[0].shape) if trim == "global" else ties(parts, density=0.3)
        close(dense(found[name]), left @ expected @ right)


def test_every_rule_has_a_name_that_options_know():
    assert tuple(RULES) == get_args(RuleName)


def test_the_table_says_of_each_rule_what_it_depends_on():
    """A rule that claims to be spectral is the same everywhere; options it does not use change nothing."""
    forms = forms_of((10, 12), (3, 2))
    changes = {"density": 0.4, "floor": 0.3, "seed": 5, "rescale": "l2"}
    for name in ONE_UPDATE:
        rule = RULES[name]
        alone = merged(forms, name, MergeOptions(), space="core")
        in_knots = merged(forms, name, MergeOptions(), space="knots")
        assert rule.elementwise == (np.abs(alone - in_knots).max() > 1e-6), name
        for option, value in changes.items():
            moved = merged(forms, name, MergeOptions(**{option: value}), space="core")
            assert (option in rule.uses) == (not np.allclose(moved, alone, rtol=0, atol=1e-9)), (name, option)


def test_what_a_rule_cannot_do_is_refused():
    forms = case("mixed ranks")
    with pytest.raises(UsageError, match="2 weights for 3 updates"):
        merged(forms, "ties", MergeOptions(weights=(1.0, 2.0)))
    with pytest.raises(UsageError, match="weights sum to 0"):
        merged(forms, "mean", MergeOptions(weights=(1.0, -0.5, -0.5)))
    with pytest.raises(UsageError, match="one update per task"):
        merge_space(make_space(forms, space="core"), RULES["emr"], MergeOptions())
    with pytest.raises(UsageError, match="knots needs the space knots"):
        merged(forms, "knots", MergeOptions(), space="core")
    with pytest.raises(UsageError, match="did you mean the rule dare_ties"):
        rule_named("dare-tie")
    for wrong in ({"density": 0.0}, {"density": 1.5}, {"floor": 0.0}, {"scaling": float("nan")}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
            MergeOptions(**wrong)
