"""What the weights of a run say, against dense float64: planted intruders, and a clean twin."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from intruscope.studies.prediction import threshold
from intruscope.studies.weights import EPSILONS, KS, thresholds, weight_figures

SHAPES = {
    "model.layers.0.self_attn.q_proj": (40, 40), "model.layers.0.mlp.up_proj": (60, 40),
    "model.layers.1.self_attn.o_proj": (40, 40), "model.layers.1.mlp.down_proj": (40, 60),
}  # fmt: skip
PLANTED = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base with a falling spectrum; strong random directions in two matrices, a whisper in all."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("weights")
    base, tuned = {}, {}
    for name, (rows, columns) in SHAPES.items():
        small = min(rows, columns)
        left = np.linalg.qr(rng.normal(size=(rows, small)))[0]
        right = np.linalg.qr(rng.normal(size=(columns, small)))[0]
        base[name] = (left * np.linspace(10, 1, small)) @ right.T
        update = 0.02 * rng.normal(size=(rows, columns))
        if name in PLANTED:
            u, v = rng.normal(size=(rows, 2)), rng.normal(size=(columns, 2))
            update += np.linalg.qr(u)[0] @ np.diag([14.0, 12.0]) @ np.linalg.qr(v)[0].T
        tuned[name] = base[name] + update
    for which, weights in (("base", base), ("tuned", tuned), ("twin", base)):
        (folder / which).mkdir()
        tensors = {f"{name}.weight": torch.tensor(w, dtype=torch.float64) for name, w in weights.items()}
        save_file(tensors, folder / which / "model.safetensors")
    return folder, base, tuned


@pytest.fixture(scope="module")
def found(pair):
    folder, _, _ = pair
    return weight_figures(str(folder / "base"), str(folder / "tuned"), work=folder / "work")


def alignments(base, tuned):
    before = np.linalg.svd(base, full_matrices=False)[0]
    after = np.linalg.svd(tuned, full_matrices=False)[0]
    return np.abs(before.T @ after).max(axis=0)


def test_counts_are_those_of_two_dense_decompositions(pair, found):
    _, base, tuned = pair
    every = {name: alignments(base[name], tuned[name]) for name in SHAPES}
    top = {name: values[:10] for name, values in every.items()}
    assert found["count"] == sum(int((values < 0.5).sum()) for values in top.values()) >= 4
    for epsilon in EPSILONS:
        expected = sum(int((values < epsilon).sum()) for values in top.values())
        assert found["counts"][f"{epsilon:g}"] == expected
    for k in KS:
        assert found["counts_by_k"][str(k)] == sum(int((v[:k] < 0.5).sum()) for v in every.values())
    attention = sum(int((top[name] < 0.5).sum()) for name in SHAPES if "attn" in name)
    assert (found["count_attention"], found["count_mlp"]) == (attention, found["count"] - attention)
    assert (found["candidates"], found["candidates_attention"], found["candidates_mlp"]) == (40, 20, 20)
    fifths = [sum(int((v[8 * i : 8 * i + 8] < 0.5).sum()) for v in every.values()) for i in range(5)]
    assert found["by_fifth"] == fifths
    assert found["hosts"] == sum(bool((values < 0.5).any()) for values in top.values())


def test_ranks_and_norms_are_those_of_the_update(pair, found):
    _, base, tuned = pair
    updates = [tuned[name] - base[name] for name in SHAPES]
    ranks = []
    for update in updates:
        values = np.linalg.svd(update, compute_uv=False)
        shares = values / values.sum()
        ranks.append(np.exp(-(shares * np.log(shares)).sum()))
    assert found["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-9)
    norm = np.sqrt(sum(np.square(update).sum() for update in updates))
    assert found["update_norm"] == pytest.approx(norm)
    whole = np.sqrt(sum(np.square(matrix).sum() for matrix in base.values()))
    assert found["relative_update_norm"] == pytest.approx(norm / whole)


def test_the_prediction_names_the_planted_matrices(pair, found):
    folder, base, tuned = pair
    limits = thresholds(str(folder / "base"))
    assert set(limits) == set(SHAPES)
    for name, limit in limits.items():
        assert limit == pytest.approx(
            threshold(np.linalg.svd(base[name], compute_uv=False), SHAPES[name], 10)
        )
        largest = np.linalg.svd(tuned[name] - base[name], compute_uv=False)[0]
        assert (largest > limit) == (name in PLANTED)
    assert found["predicted_hosts"] == found["hosts"] == len(PLANTED)


def test_the_null_counts_random_directions_of_the_same_sizes(found):
    """The planted directions are random themselves, so the null makes about as many."""
    assert 3 <= found["null_count"] <= 6


def test_a_clean_twin_has_nothing(pair):
    folder, _, _ = pair
    nothing = weight_figures(str(folder / "base"), str(folder / "twin"), work=folder / "twin-work")
    assert (nothing["count"], nothing["hosts"], nothing["predicted_hosts"], nothing["null_count"]) == (
        0,
        0,
        0,
        0,
    )
    assert (nothing["update_norm"], nothing["effective_rank"]) == (0.0, None)
    assert set(nothing["by_fifth"]) == {0}


def test_a_large_model_is_looked_at_at_its_top_alone(pair, found):
    folder, _, _ = pair
    large = weight_figures(str(folder / "base"), str(folder / "tuned"), work=folder / "large", is_large=True)
    assert large["count"] == found["count"]
    assert "by_fifth" not in large
    assert "null_count" not in large
