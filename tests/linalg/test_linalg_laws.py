"""What must not change a verdict: rotations, scale, transposition, threads, signs, order."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linalg_cases import orthonormal

from intruscope.linalg import analysis
from intruscope.linalg.analysis import analyse

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ROWS, COLUMNS, K = 36, 28, 5


def pair(seed):
    """A base and a low-rank update of comparable size."""
    rng = np.random.default_rng(seed)
    base = (orthonormal(ROWS, COLUMNS, rng) * np.arange(1, COLUMNS + 1) ** -0.6) @ orthonormal(
        COLUMNS, COLUMNS, rng
    ).T
    update = 0.8 * orthonormal(ROWS, 3, rng) @ orthonormal(COLUMNS, 3, rng).T
    return torch.from_numpy(base), torch.from_numpy(base + update), rng


def verdicts(base, tuned, side="left"):
    """+1 intruder, -1 aligned, 0 undecided, at every threshold."""
    found = analyse(base.contiguous(), tuned_OI=tuned.contiguous(), k=K, sides=(side,)).sides[side]
    return np.array([(found.upper < e).numpy() * 1 - (found.lower >= e).numpy() * 1 for e in GRID])


def never_flip(first, second):
    """Near a threshold a verdict may become undecided, never the other one."""
    assert (first * second >= 0).all()
    assert (first != second).mean() <= 0.03


seeds = st.integers(0, 10_000)
quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(seed=seeds)
@quick
def test_rotating_both_models_changes_nothing(seed):
    base, tuned, rng = pair(seed)
    left, right = (torch.from_numpy(orthonormal(n, n, rng)) for n in (ROWS, COLUMNS))
    never_flip(verdicts(base, tuned), verdicts(left @ base @ right, left @ tuned @ right))


@given(seed=seeds, exponent=st.integers(-200, 200))
@quick
def test_scaling_both_models_changes_nothing(seed, exponent):
    base, tuned, _ = pair(seed)
    scale = 2.0**exponent
    assert (verdicts(base, tuned) == verdicts(base * scale, tuned * scale)).all()


@given(seed=seeds)
@quick
def test_transposing_swaps_the_sides(seed):
    base, tuned, _ = pair(seed)
    never_flip(verdicts(base, tuned, "left"), verdicts(base.T, tuned.T, "right"))
    never_flip(verdicts(base, tuned, "right"), verdicts(base.T, tuned.T, "left"))


@given(seed=seeds)
@quick
def test_the_sides_are_not_the_same_thing(seed):
    """A law that a no-op would pass: rotating the input space of the tuned model alone spares the left."""
    base, tuned, rng = pair(seed)
    right = torch.from_numpy(orthonormal(COLUMNS, COLUMNS, rng))
    never_flip(verdicts(base, tuned), verdicts(base, tuned @ right))
    assert (verdicts(base, tuned @ right, "right") != verdicts(base, tuned, "right")).any()


def test_threads_change_no_verdict_and_a_seed_gives_the_same_bits():
    base, tuned, _ = pair(3)
    threads = torch.get_num_threads()
    try:
        seen = []
        for count in (1, 2):
            torch.set_num_threads(count)
            seen.append(verdicts(base, tuned))
    finally:
        torch.set_num_threads(threads)
    never_flip(*seen)
    first, second = (analyse(base, tuned_OI=tuned, k=K, seed=5).sides["left"] for _ in range(2))
    assert torch.equal(first.upper, second.upper)
    assert torch.equal(first.lower, second.lower)


@pytest.mark.slow
def test_the_krylov_path_does_not_depend_on_its_random_block(monkeypatch):
    """Different Gaussian columns may move the bounds, never a verdict."""
    monkeypatch.setattr(analysis, "DENSE_LIMIT", 640)
    rng = np.random.default_rng(11)
    base = (orthonormal(800, 700, rng) * np.arange(1, 701) ** -0.7) @ orthonormal(700, 700, rng).T
    update = (0.5 * orthonormal(800, 4, rng)) @ orthonormal(700, 4, rng).T
    tuned = torch.from_numpy(base + update).float()
    results = []
    for seed in (0, 1):
        found = analyse(torch.from_numpy(base).float(), tuned_OI=tuned, k=8, seed=seed)
        assert found.spectrum.certificate == "probabilistic"
        side = found.sides["left"]
        results.append(np.array([(side.upper < e).numpy() * 1 - (side.lower >= e).numpy() * 1 for e in GRID]))
    never_flip(*results)
