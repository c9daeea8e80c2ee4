"""Every intervention against explicit formulas over dense float64 decompositions."""

import math

import numpy as np
import pytest
import torch
from repair_models import SHAPES, bases, factors, naive, truth

from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.repair.interventions import INTERVENTIONS, change_norm, intervene, selected
from intruscope.repair.survey import survey
from intruscope.spectra.records import ScanSettings

STRENGTHS = (0.0, 0.3, 0.9, 1.5)


@pytest.fixture(scope="module")
def truths():
    """Matrix to (W₀, ΔW, left, values, right, intruders), all dense float64."""
    base, adapter = bases(), factors()
    made = {}
    for name in SHAPES:
        before, update = truth(name, base, adapter)
        made[name] = (before, update, *naive(before, update))
    return made


def applied(edits, truths):
    """Matrix to the change W' − W that the edits make."""
    changes = {name: torch.zeros_like(t[1]) for name, t in truths.items()}
    for edit in edits:
        if edit.name in truths:
            before, update = truths[edit.name][:2]
            changes[edit.name] = edit.applied(before, before + update) - (before + update)
    return changes


def intruder_change(truths, strength, which):
    """The paper's formula, matrix by matrix."""
    changes = {}
    for name, (_, update, left, values, right, intruders) in truths.items():
        changes[name] = torch.zeros_like(update)
        for i in intruders[:1] if which == "top" else intruders:
            outer = np.outer(left[:, i], right[:, i])
            changes[name] += torch.from_numpy((strength - 1.0) * values[i] * outer)
    return changes


def norm(changes):
    return math.sqrt(sum(float(change.square().sum()) for change in changes.values()))


def close(got, expected, scale=1.0):
    for name, change in expected.items():
        torch.testing.assert_close(got[name], change, rtol=0, atol=2e-6 * scale, msg=name)


def test_the_case_has_what_the_tests_need(truths):
    counts = [len(t[-1]) for t in truths.values()]
    assert max(counts) > 1  # top and all differ
    assert min(counts) == 0  # one matrix is left alone
    assert any(0 < i < 9 for t in truths.values() for i in t[-1])  # neighbours above and below exist
    assert any(i != j for t in truths.values() for j, i in enumerate(t[-1]))  # not just the leading ones


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("which", ["top", "all"])
def test_the_intruder_edit_is_the_papers_formula(found, truths, strength, which):
    edits = intervene(found, strength=strength, which=which)
    expected = intruder_change(truths, strength, which)
    close(applied(edits, truths), expected)
    assert {edit.name for edit in edits} == {name for name, t in truths.items() if t[-1]}
    transposed = {
        n: c.T for n, c in expected.items() if c.shape[0] == c.shape[1] and float(c.abs().max()) > 0
    }
    assert all(not torch.allclose(c, expected[n], atol=1e-2) for n, c in transposed.items())
    assert change_norm(found, edits) == pytest.approx(norm(expected), rel=1e-6)


def test_strength_zero_removes_the_vector_and_others_stay(found, truths):
    (edit, *_) = intervene(found, strength=0.0)
    before, update, _, values, _, intruders = truths[edit.name]
    left = np.linalg.svd(edit.applied(before, before + update).numpy(), compute_uv=False)
    expected = np.sort(np.append(np.delete(values, intruders[0]), 0.0))[::-1]
    assert left == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_strength_one_is_the_identity(found, kind):
    assert intervene(found, kind=kind, strength=1.0, which="all") == ()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_uniform_scales_every_surveyed_update(found, truths, strength):
    edits = intervene(found, kind="uniform", strength=strength)
    close(applied(edits, truths), {n: (strength - 1.0) * t[1] for n, t in truths.items()})


@pytest.mark.parametrize("strength", [0.7, 0.9, 1.5])
@pytest.mark.parametrize("which", ["top", "all"])
def test_matched_change_has_the_norm_of_the_edit(found, truths, strength, which):
    target = norm(intruder_change(truths, strength, which))
    edits = intervene(found, kind="matched_change", strength=strength, which=which)
    changes = applied(edits, truths)
    assert norm(changes) == pytest.approx(target, rel=1e-6)
    assert change_norm(found, edits) == pytest.approx(target, rel=1e-6)
    ratios = {float(changes[n].flatten() @ t[1].flatten() / t[1].square().sum()) for n, t in truths.items()}
    assert max(ratios) - min(ratios) < 1e-9  # one factor for all, along the update itself
    assert (max(ratios) > 0) == (strength > 1.0)


def test_a_change_larger_than_the_update_is_not_matched_but_removes_it(models):
    # The intruder's singular value is larger than the whole update where the base adds to it.
    shrunk = survey(
        str(models / "base"),
        str(models / "adapter"),
        settings=ScanSettings(epsilon=0.99),
        options=RunOptions(workers=0),
    )
    edits = intervene(shrunk, kind="matched_change", strength=0.0, which="all")
    assert {edit.update_scale for edit in edits} == {0.0}
    whole = math.sqrt(sum(m.update_norm**2 for m in shrunk.matrices))
    assert change_norm(shrunk, edits) == pytest.approx(whole)
    assert whole < change_norm(shrunk, intervene(shrunk, strength=0.0, which="all"))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_matched_result_leaves_an_update_of_the_same_norm(found, truths, strength):
    edited = intruder_change(truths, strength, "all")
    target = norm({n: truths[n][1] + c for n, c in edited.items()})
    edits = intervene(found, kind="matched_result", strength=strength, which="all")
    changes = applied(edits, truths)
    assert norm({n: truths[n][1] + c for n, c in changes.items()}) == pytest.approx(target, rel=1e-6)
    assert len({edit.update_scale for edit in edits}) == 1


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_random_direction_gets_the_same_change_and_is_like_no_other(found, truths, strength):
    edits = intervene(found, kind="random", strength=strength, which="all", seed=3)
    changes = applied(edits, truths)
    expected = intruder_change(truths, strength, "all")
    for edit in edits:
        *_, left, values, _, intruders = truths[edit.name]
        got = np.linalg.svd(changes[edit.name].numpy(), compute_uv=False)
        wanted = np.sort(abs(strength - 1.0) * values[intruders])[::-1]
        assert got[: len(wanted)] == pytest.approx(wanted, rel=1e-6)
        assert got[len(wanted) :] == pytest.approx(0.0, abs=1e-9)
        # Not orthogonal to the tuned vectors, which would make it special, and not along them.
        shares = np.abs(left.T @ edit.left_OK.numpy())
        assert shares.max() < 0.7
        assert shares.min() < shares.max() != 0.0
        assert float(torch.sign(edit.change_K).unique()) == math.copysign(1.0, strength - 1.0)
    assert norm(changes) == pytest.approx(norm(expected), rel=1e-6)


def test_random_directions_depend_on_the_seed_and_the_matrix_alone(found):
    first = intervene(found, kind="random", strength=0.5, seed=0)
    again = intervene(found, kind="random", strength=0.2, seed=0)
    other = intervene(found, kind="random", strength=0.5, seed=1)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.left_OK, same.left_OK)
        assert float((one.left_OK.T @ different.left_OK).abs().max()) < 0.7
    assert all(a.left_OK.shape != b.left_OK.shape or not torch.equal(a.left_OK, b.left_OK)
               for i, a in enumerate(first) for b in first[:i])  # fmt: skip


@pytest.mark.parametrize(("kind", "step"), [("neighbour_above", -1), ("neighbour_below", 1)])
def test_neighbours_are_the_nearest_base_like_vectors(found, truths, kind, step):
    strength = 0.4
    edits = {edit.name: edit for edit in intervene(found, kind=kind, strength=strength)}
    seen = 0
    for name, (_, update, left, values, right, intruders) in truths.items():
        expected = torch.zeros_like(update)
        if intruders:
            at = intruders[0] + step
            while at in intruders:
                at += step
            if 0 <= at < 10:
                seen += 1
                outer = np.outer(left[:, at], right[:, at])
                expected = torch.from_numpy((strength - 1.0) * values[at] * outer)
                change = applied([edits[name]], truths)[name]
                torch.testing.assert_close(change, expected, rtol=0, atol=2e-6)
                continue
        assert name not in edits
    assert seen


@pytest.mark.parametrize("strength", [0.8, 1.2])
def test_the_tail_is_cut_by_the_norm_of_the_edit(found, truths, strength):
    target = norm(intruder_change(truths, strength, "top"))
    changes = applied(intervene(found, kind="tail", strength=strength), truths)
    assert norm(changes) == pytest.approx(target, rel=1e-6)
    before, after = [], []
    for name, t in truths.items():
        before += list(np.linalg.svd(t[1].numpy(), compute_uv=False))
        after += list(np.linalg.svd((t[1] + changes[name]).numpy(), compute_uv=False))
    before, after = np.sort(before)[::-1], np.sort(after)[::-1]
    # Everything above the cut is untouched, one value is partly changed, below all are gone (or doubled).
    if strength < 1.0:
        gone = int((after < 1e-5).sum() - (before < 1e-5).sum())
        assert gone >= 1
        untouched = np.isclose(before, after, atol=1e-5) & (before > 1e-5)
        assert untouched.sum() + gone + 1 == (before > 1e-5).sum()
        assert after[: untouched.sum()] == pytest.approx(before[: untouched.sum()])
    else:
        assert after.max() == pytest.approx(before.max())
        assert after.sum() > before.sum()


def test_the_tail_of_a_full_update_needs_its_vectors(models, found_full):
    thin = survey(str(models / "base"), str(models / "merged"), options=RunOptions(workers=0))
    with pytest.raises(UsageError, match="singular vectors"):
        intervene(thin, kind="tail", strength=0.9)
    target = change_norm(thin, intervene(thin, strength=0.9))
    cut = intervene(found_full, kind="tail", strength=0.9)
    assert change_norm(found_full, cut) == pytest.approx(target, rel=1e-6)


def test_interpolation_moves_everything_that_was_changed(found, found_full):
    assert {edit.name for edit in intervene(found, kind="interpolation", strength=0.4)} == set(SHAPES)
    edits = intervene(found_full, kind="interpolation", strength=0.4)
    assert {edit.name for edit in edits} == {*SHAPES, "model.embed_tokens", "model.norm.weight"}
    assert {edit.update_scale for edit in edits} == {0.4}
    uniform = intervene(found_full, kind="uniform", strength=0.4)
    assert {edit.name for edit in uniform} == set(SHAPES)
    before, after = torch.ones(3), torch.tensor([1.0, 2.0, 0.0])
    assert edits[-1].applied(before, after).tolist() == pytest.approx([1.0, 1.4, 0.6], abs=1e-12)


def test_a_full_checkpoint_and_an_adapter_of_the_same_update_get_the_same_edit(found, found_full):
    both = [intervene(s, strength=0.3, which="all") for s in (found, found_full)]
    for one, other in zip(*both, strict=True):
        assert one.name == other.name
        first = (one.left_OK * one.change_K) @ one.right_IK.T
        second = (other.left_OK * other.change_K) @ other.right_IK.T
        torch.testing.assert_close(first, second, rtol=0, atol=2e-5)


def test_names_and_indices_choose_vectors(found, truths):
    names = list(SHAPES)
    top = selected(found, "top")
    assert selected(found, f"{names[0]}") == {n: i for n, i in top.items() if n == names[0]}
    assert selected(found, f"{names[3]}:1+0, {names[0]}:2") == {names[0]: (2,), names[3]: (0, 1)}
    assert selected(found, "*.mlp.*:all") == {n: tuple(truths[n][-1]) for n in names if "mlp" in n}
    edits = intervene(found, strength=0.5, which=f"{names[3]}:1")
    left, values, right = truths[names[3]][2:5]
    expected = {n: torch.zeros_like(t[1]) for n, t in truths.items()}
    expected[names[3]] = torch.from_numpy(-0.5 * values[1] * np.outer(left[:, 1], right[:, 1]))
    close(applied(edits, truths), expected)


@pytest.mark.parametrize(
    ("which", "says"),
    [("model.layers.0.self_attn.q_prj", "did you mean model.layers.0.self_attn.q_proj"),
     ("*.q_proj:10", "has no vector 10: only its top 10 were kept"), ("", "top, all, or names"),
     ("a,,b", "top, all, or names")],
)  # fmt: skip
def test_a_selection_without_meaning_is_refused(found, which, says):
    with pytest.raises(UsageError) as caught:
        intervene(found, strength=0.5, which=which)
    assert says in str(caught.value)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -0.1, -math.inf])
@pytest.mark.parametrize("kind", ["intruders", "uniform", "interpolation"])
def test_a_strength_without_meaning_is_refused(found, strength, kind):
    with pytest.raises(UsageError, match="finite number of at least 0"):
        intervene(found, kind=kind, strength=strength)


def test_an_unknown_kind_is_refused(found):
    with pytest.raises(UsageError, match="matched_change"):
        intervene(found, kind="shrink", strength=0.5)
