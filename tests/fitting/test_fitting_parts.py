"""What a fit trains: its gradients against the dense matrices, and its edits against its corrections."""

import pytest
import torch
from forgetting_models import TEXT

from intruscope.engine.settings import RunOptions
from intruscope.errors import UnsupportedFormat
from intruscope.fitting.attach import attached
from intruscope.fitting.losses import task_items, text_items
from intruscope.fitting.parts import FactorPart, parts_of
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.repair.survey import survey

INLINE = RunOptions(workers=0)


def opened(folder, tuned="tuned"):
    found = survey(str(folder / "base"), str(folder / tuned), options=INLINE, update_spectra=True)
    return found, load_pair(folder / "base", folder / tuned, device="cpu")


@pytest.fixture(scope="module")
def worlds(causal, masked, tmp_path_factory):
    """Survey, pair and items of each kind of fine-tune."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(TEXT * 3)
    made = {}
    for kind, folder in causal.items():
        found, pair = opened(folder)
        made[kind] = found, pair, text_items(pair, read_texts([text]), general="loss", seed=0)
    found, pair = opened(masked, "adapter")
    made["classifier"] = (
        found,
        pair,
        task_items(pair, load_task(masked / "task.tsv"), max_tokens=None, seed=0),
    )
    return made


def moved(part, seed=0):
    """Numbers away from the start."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(each + 0.2 * torch.randn(each.shape, generator=draw) for each in part.start())


def mean(items):
    nats, units = items.nats(range(min(6, len(items.sizes))))
    return nats / units


CASES = [
    (kind, fix)
    for kind in ("lora", "full", "classifier")
    for fix in ("fitted", "fitted_matrix", "replay")
    if (kind, fix) != ("full", "replay")
]


@pytest.mark.parametrize(("kind", "fix"), CASES)
def test_the_edits_of_a_fit_are_what_it_was_fitted_with(worlds, kind, fix):
    found, pair, items = worlds[kind]
    parts = parts_of(fix, found, pair)
    numbers = {part.key: moved(part) for part in parts}
    with torch.no_grad():
        before = float(mean(items))
        with attached(pair, parts, numbers):
            fitted = float(mean(items))
            with pair.as_base():
                unmoved = float(mean(items))
        edits = [edit for part in parts for edit in part.edits(numbers[part.key])]
        with pair.with_edits(edits):
            assert float(mean(items)) == pytest.approx(fitted, rel=1e-5)
        with pair.as_base():
            assert float(mean(items)) == unmoved  # a correction is of the tuned weights alone
        assert float(mean(items)) == before
    assert abs(fitted - before) > 1e-3
    assert not [edit for part in parts for edit in part.edits(part.start())]


@pytest.mark.parametrize("kind", ["lora", "full", "classifier"])
def test_the_gradient_of_a_factor_is_that_of_the_dense_matrix(worlds, kind, monkeypatch):
    """dL/ds_k = σ_k u_kᵀ (dL/dW) v_k and, for what shares a factor, ⟨dL/dW, ΔW⟩ less the directions."""
    monkeypatch.setattr("intruscope.fitting.parts.MAX_DIRECTIONS", 3)
    found, pair, items = worlds[kind]
    parts = parts_of("fitted", found, pair)
    numbers = {part.key: tuple(each.requires_grad_() for each in part.start()) for part in parts}
    with attached(pair, parts, numbers):
        mean(items).backward()
    weights = {}
    for part in parts:
        view, layers = pair.layers_with(part.layer)
        weights[part.key] = view, layers[0].weight.requires_grad_()
    mean(items).backward()
    for part in parts:
        view, weight = weights[part.key]
        slope_OI = view.cut(weight.grad).double()
        update_OI = (pair.tuned_matrix(part.name) - pair.base_matrix(part.name)).double()
        along_K = torch.einsum("ok,oi,ik->k", part.left_OK, slope_OI, part.right_IK) * part.values_K
        expected = along_K
        if part.rest_OI is not None:
            rest = (slope_OI * update_OI).sum() - along_K.sum()
            expected = torch.cat([along_K, rest[None]])
        torch.testing.assert_close(
            numbers[part.key][0].grad.double(), expected, rtol=1e-3, atol=1e-6, check_dtype=False
        )
        assert expected.abs().max() > 1e-6
    for _, weight in weights.values():
        weight.requires_grad_(False)
        weight.grad = None


def test_an_update_of_high_rank_has_a_factor_for_the_rest(worlds, monkeypatch):
    monkeypatch.setattr("intruscope.fitting.parts.MAX_DIRECTIONS", 3)
    found, pair, items = worlds["full"]
    parts = parts_of("fitted", found, pair)
    assert all(isinstance(part, FactorPart) and len(part.start()[0]) == 4 for part in parts)
    numbers = {part.key: moved(part) for part in parts}
    with torch.no_grad():
        with attached(pair, parts, numbers):
            fitted = float(mean(items))
        with pair.with_edits([edit for part in parts for edit in part.edits(numbers[part.key])]):
            assert float(mean(items)) == pytest.approx(fitted, rel=1e-5)


def test_replay_keeps_the_rank_of_a_fused_module(worlds):
    """q, k and v share A: their edits lie in the span of the old and the new A together."""
    found, pair, _ = worlds["lora"]
    parts = parts_of("replay", found, pair)
    assert sum(len(part.pairs) for part in parts) == len(found.matrices) > len(parts)
    for part in parts:
        edits = part.edits(moved(part))
        rows = torch.cat([edit.right_IK.T for edit in edits])
        assert torch.linalg.matrix_rank(rows) == 2 * part.down_RI.shape[0]
        assert all(torch.dist(e.left_OK.T @ e.left_OK, torch.eye(len(e.change_K))) < 1e-9 for e in edits)


def test_replay_of_a_full_fine_tune_is_refused(worlds):
    found, pair, _ = worlds["full"]
    with pytest.raises(UnsupportedFormat, match="plain LoRA"):
        parts_of("replay", found, pair)
