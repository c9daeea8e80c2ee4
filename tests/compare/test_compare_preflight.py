"""Intruders of a merge: against dense decompositions, and planted where inflation makes one."""

import numpy as np
import pytest
import torch
from compare_models import module, rank_one, updates_of, write_lora
from safetensors.torch import load_file

import intruscope
from intruscope.compare.settings import CompareSettings
from intruscope.engine.settings import RunOptions

from cli_support import write_model  # isort: skip

INLINE = RunOptions(workers=0)


def intruders(base, update, k=10, epsilon=0.5):
    """The paper's procedure: left vectors and singular values of the intruders among the top k."""
    known = np.linalg.svd(base, full_matrices=False)[0]
    u, s, _ = np.linalg.svd(base + update, full_matrices=False)
    kept = np.abs(known.T @ u[:, :k]).max(axis=0) < epsilon
    return u[:, :k][:, kept], s[:k][kept]


def test_counts_are_those_of_dense_decompositions(files):
    weight = 0.7
    models = [files / name for name in ("base", "a", "b", "c")]
    report = intruscope.compare(*models, settings=CompareSettings(weight=weight), options=INLINE)
    base = load_file(files / "base" / "model.safetensors")
    parts = [updates_of(files / name) for name in "abc"]
    for each in report.merge.modules:
        start = base[f"{each.name}.weight"].double().numpy()
        updates = [part[each.name].numpy() for part in parts]
        found = [intruders(start, update) for update in updates]
        flight = each.preflight
        assert [part.num_intruders for part in flight.parts] == [u.shape[1] for u, _ in found]
        energies = [(s**2).sum() for _, s in found]
        np.testing.assert_allclose([part.energy for part in flight.parts], energies, rtol=1e-5)
        assert flight.base_energy == pytest.approx((start**2).sum())
        assert flight.num_vectors == 10
        span = np.linalg.svd(np.concatenate([u for u, _ in found], axis=1), full_matrices=False)
        span = span[0][:, span[1] > 0.1]
        total = sum(updates)
        norm = np.sqrt(sum((update**2).sum() for update in updates) / 3 / (total**2).sum())
        for model, scale in ((flight.merge, weight), (flight.equal_norm, norm)):
            left, values = intruders(start, scale * total)
            is_new = ((span.T @ left) ** 2).sum(axis=0) <= 0.5
            assert (model.num_intruders, model.num_new) == (len(values), is_new.sum())
            assert model.new_energy == pytest.approx((values[is_new] ** 2).sum(), rel=1e-5)
        for (i, j), pair in zip([(0, 1), (0, 2), (1, 2)], report.pairs, strict=True):
            shared = ((found[i][0].T @ found[j][0]) ** 2 > 0.5).sum()
            assert {m.name: m for m in pair.modules}[each.name].num_shared_intruders == shared
    whole = report.merge.preflight
    assert whole.merge.num_new == sum(each.preflight.merge.num_new for each in report.merge.modules)
    assert whole.parts[0].num_intruders > 0


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A base with ten singular values near 10 and a bulk of 0.5, and adapters that add 6 in one direction.

    Alone none reaches the top ten. ``first`` and ``same`` add up to 12 in one direction; ``other`` has
    its own.
    """
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in (48, 40))
    values = np.where(np.arange(40) < 10, 10 - 0.1 * np.arange(40), 0.5 - 0.001 * np.arange(40))
    tensor = torch.from_numpy((left[:, :40] * values) @ right.T).float()
    write_model(folder / "base", {f"{module(0)}.weight": tensor})
    # Directions in the bulk: spread evenly over twenty base vectors, so that none of them is close.
    signs = np.repeat([1.0, -1.0], 10)
    for name, sign in (("first", np.ones(20)), ("same", np.ones(20)), ("other", signs)):
        u, v = (torch.from_numpy(side[:, 20:40] @ sign / 20**0.5) for side in (left, right))
        write_lora(folder / name, rank_one(u, v, 6.0))
    return folder


def flight(folder, *names, **settings):
    models = [folder / name for name in ("base", *names)]
    report = intruscope.compare(*models, settings=CompareSettings(**settings), options=INLINE)
    return report.merge.preflight, report


def test_inflation_makes_an_intruder_that_no_part_had(planted):
    found, report = flight(planted, "first", "same", weight=1.0)
    assert [part.num_intruders for part in found.parts] == [0, 0]
    assert (found.merge.num_intruders, found.merge.num_new) == (1, 1)
    assert found.merge.new_energy == pytest.approx(12.5**2, rel=0.02)
    # The controls: neither size in random directions nor the sum at the norm of a part does that.
    assert (found.random_merge.num_new, found.equal_norm.num_new) == (0, 0)
    assert report.merge.modules[0].inflation == pytest.approx(2.0, rel=1e-6)
    assert report.pairs[0].num_shared_intruders == 0


def test_no_part_and_no_average_of_equal_parts_is_taken_for_new(planted):
    apart, _ = flight(planted, "first", "other", weight=1.0)
    assert (apart.merge.num_intruders, apart.merge.num_new) == (0, 0)
    assert flight(planted, "first", "same")[0].merge.num_intruders == 0  # each of them again
    strong, report = flight(planted, "first", "same", weight=2.0, k=11)
    assert [part.num_intruders for part in strong.parts] == [1, 1]
    assert (strong.merge.num_intruders, strong.merge.num_new) == (1, 0)  # its direction is the parts' own
    assert report.pairs[0].num_shared_intruders == 1
