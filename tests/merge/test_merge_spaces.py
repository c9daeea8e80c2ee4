"""Spaces lose nothing, and do not depend on how an adapter is written."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import SHAPES, case, close, coordinates, dense, distance, forms_of, merged, regauged, updates
from peft import LoraConfig, get_peft_model

from intruscope.errors import ShapeMismatch, UsageError
from intruscope.merge.options import MergeOptions
from intruscope.merge.spaces import make_space

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

ALL_SPACES = ["dense", "core", "knots"]
ELEMENTWISE = ["ties", "dare_ties"]
ALL_RULES = ["sum", "mean", *ELEMENTWISE, "tsv", "iso", "svc", "pico"]


def bases_for(name):
    return ["update"] if None in SHAPES[name][1] else ["update", "qr", "official"]


SPACES = [
    (name, space, basis)
    for name in SHAPES
    for space in ALL_SPACES
    for basis in (bases_for(name) if space != "dense" else ["update"])
]


@pytest.mark.parametrize(("name", "space", "basis"), SPACES)
def test_every_update_comes_back_from_its_part(name, space, basis):
    forms = case(name)
    made = make_space(forms, space=space, basis=basis)
    for part, update in zip(made.parts, updates(forms), strict=True):
        restored = made.restore(part)
        assert isinstance(restored, tuple) == (space != "dense" and None not in SHAPES[name][1])
        close(dense(restored), update)
    for rows in (None if made.left_OK is None else made.left_OK.T, made.right_KI):
        if rows is not None:
            close((rows @ rows.T).numpy(), np.eye(len(rows)))


@pytest.mark.parametrize(("name", "space", "basis"), [s for s in SPACES if s[2] != "qr"])
def test_coordinates_are_those_of_dense_decompositions(name, space, basis):
    """Up to the signs of singular vectors, which no rule sees."""
    forms = case(name)
    _, expected, _ = coordinates(forms, space, basis)
    for part, twin in zip(make_space(forms, space=space, basis=basis).parts, expected, strict=True):
        close(part.abs().numpy(), np.abs(twin))


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("rule", ALL_RULES)
def test_the_default_basis_does_not_see_how_an_adapter_is_factored(rule, space):
    forms = case("mixed ranks")
    options, labels = MergeOptions(density=0.5), ("a", "b", "c")
    expected = merged(forms, rule, options, space=space, labels=labels)
    for changed in (
        [regauged(form, seed) for seed, form in enumerate(forms)],
        [(30.0 * forms[0][0], forms[0][1] / 30.0), *forms[1:]],
    ):
        close(merged(changed, rule, options, space=space, labels=labels), expected)


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("rule", ALL_RULES)
def test_the_order_of_fine_tunes_does_not_matter(rule, space):
    forms, labels, weights = case("mixed ranks"), ("a", "b", "c"), (1.0, 0.5, 2.0)
    first = MergeOptions(density=0.5, weights=weights)
    turned = MergeOptions(density=0.5, weights=weights[::-1])
    close(
        merged(forms[::-1], rule, turned, space=space, labels=labels[::-1]),
        merged(forms, rule, first, space=space, labels=labels),
    )


@pytest.mark.parametrize("basis", ["official", "qr"])
def test_the_published_bases_see_it_under_elementwise_rules_only(basis):
    """TIES in the core moves by tens of percent when one adapter is written as (3 B, A / 3)."""
    forms = forms_of((24, 36), (4, 4, 4))
    same = [(3.0 * forms[0][0], forms[0][1] / 3.0), *(regauged(form) for form in forms[1:])]
    moved = {
        rule: distance(
            merged(same, rule, MergeOptions(density=0.5), basis=basis),
            merged(forms, rule, MergeOptions(density=0.5), basis=basis),
        )
        for rule in ("sum", "tsv", "iso", "svc", "ties")
    }
    assert moved.pop("ties") > 0.1
    assert max(moved.values()) < 1e-10


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    space=st.sampled_from(ALL_SPACES),
    seed=st.integers(0, 2**16),
)
def test_sum_and_mean_are_the_same_in_every_space(shape, ranks, space, seed):
    forms = forms_of(shape, ranks, seed)
    weights = tuple(1.0 + index for index in range(len(ranks)))
    expected = sum(w * update for w, update in zip(weights, updates(forms), strict=True))
    options = MergeOptions(weights=weights, scaling=0.7)
    close(merged(forms, "sum", options, space=space), 0.7 * expected, 1e-11)
    close(merged(forms, "mean", options, space=space), 0.7 * expected / sum(weights), 1e-11)


def test_half_precision_factors_are_read_exactly():
    forms = [(left.half(), right.half()) for left, right in case("mixed ranks")]
    exact = [(left.double(), right.double()) for left, right in forms]
    for space in ALL_SPACES:
        made = make_space(forms, space=space)
        assert {part.dtype for part in made.parts} == {torch.float64}
        for part, update in zip(made.parts, updates(exact), strict=True):
            close(dense(made.restore(part)), update)


def test_merged_rank_is_at_most_the_sum_of_the_ranks():
    forms = case("mixed ranks")
    for space in ("core", "knots"):
        for rule in ("ties", "dare_ties", "tsv", "iso"):
            made = make_space(forms, space=space)
            assert made.left_OK.shape[1] <= 10
            found = merged(forms, rule, MergeOptions(density=0.5), space=space)
            assert np.linalg.matrix_rank(found) <= 10
    # which the same rule on whole updates does not keep
    assert np.linalg.matrix_rank(merged(forms, "ties", MergeOptions(density=0.5), space="dense")) == 20


def test_twice_the_scaling_is_twice_the_update():
    forms = case("mixed ranks")
    doubled = [(2.0 * left, right) for left, right in forms]
    for space in ALL_SPACES:
        for rule in ALL_RULES:
            options = MergeOptions(density=0.5)
            expected = 2.0 * merged(forms, rule, options, space=space)
            close(merged(doubled, rule, options, space=space), expected)


def test_copies_leave_a_basis_of_one_fine_tune():
    one = case("mixed ranks")[0]
    made = make_space([one, regauged(one), one], space="core")
    assert made.parts[0].shape == (3, 3)
    assert not made.degenerate


def test_small_updates_are_cut_by_no_absolute_bound():
    """The released code of KnOTS drops singular values below 1e-5."""
    forms = case("mixed ranks")
    tiny = [(1e-8 * left, right) for left, right in forms]
    beside = [forms[0], *tiny[1:]]
    for space in ("core", "knots"):
        close(merged(tiny, "sum", MergeOptions(), space=space), 1e-8 * sum(updates(forms)))
        made = make_space(beside, space=space)
        # Rounding is relative to the largest of the updates that share the basis.
        close(dense(made.restore(made.parts[1])), dense(beside[1]), 1e-6)


def test_equal_singular_values_are_reported():
    """Two fine-tunes of equal size in orthogonal directions: their basis vectors can be turned at will."""
    eye = torch.eye(6, dtype=torch.float64)
    forms = [(eye[:, :1], eye[:1]), (eye[:, 1:2], eye[1:2])]
    assert make_space(forms, space="core").degenerate
    assert make_space(forms, space="knots").smallest_gap == 0.0
    assert not make_space(forms, space="dense").degenerate
    assert not make_space([forms[0], (2.0 * eye[:, 1:2], eye[1:2])], space="core").degenerate


@pytest.mark.parametrize("space", ALL_SPACES)
def test_nothing_but_zeros_is_merged_into_zeros(space):
    zero = (torch.zeros(5, 2), torch.ones(2, 7))
    for rule in ALL_RULES:
        for forms in ([zero, zero], [zero, (torch.zeros(5, 0), torch.zeros(0, 7))]):
            found = merged(forms, rule, MergeOptions(), space=space)
            assert found.shape == (5, 7)
            assert not found.any()


def test_a_zero_adapter_is_neutral_for_the_sum():
    forms = case("mixed ranks")
    zero = (torch.zeros(20, 4), torch.ones(4, 30))
    for space in ALL_SPACES:
        close(
            merged([*forms, zero], "sum", MergeOptions(), space=space),
            merged(forms, "sum", MergeOptions(), space=space),
        )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_sum_is_what_peft_makes_by_cat():
    torch.manual_seed(0)
    model = peft_models.llama().double()
    targets = ["q_proj", "down_proj"]
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=12, target_modules=targets), adapter_name="first"
    )
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=3, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter)
    model.add_weighted_adapter(["first", "second"], [1.0, -0.5], "both", combination_type="cat")
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 4
    for layer in layers:
        forms = [
            (layer.scaling[label] * layer.lora_B[label].weight.data, layer.lora_A[label].weight.data)
            for label in ("first", "second")
        ]
        expected = layer.get_delta_weight("both").detach().numpy()
        for space in ALL_SPACES:
            close(merged(forms, "sum", MergeOptions(weights=(1.0, -0.5)), space=space), expected)


def test_updates_that_do_not_belong_together_are_refused():
    forms = case("mixed ranks")
    with pytest.raises(ShapeMismatch, match=r"different shapes: \(20, 30\), \(6, 40\)"):
        make_space([forms[0], case("more ranks than rows")[0]], space="core")
    with pytest.raises(ShapeMismatch, match="have no product"):
        make_space([(forms[0][0], forms[1][1])], space="core")
    with pytest.raises(UsageError, match="no update"):
        make_space([], space="core")
    with pytest.raises(UsageError, match="'official' is computed from the factors"):
        make_space(case("dense and factors"), space="core", basis="official")
