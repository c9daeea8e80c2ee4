"""The Krylov path against the naive twin: every claim on the way, not only the last one.

The path is made for matrices far too large for this file, so its size limits are lowered. What it
cannot decide at such sizes goes to the dense path; the bounds it had by then are held to the truth too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
from linalg_cases import BASES, Case, case, orthonormal, stored, with_spectrum
from linalg_checks import BLUNT, THRESHOLDS, Tally, bound_faults, compare, float32_resolution

from intruscope.linalg import alignment, analysis
from intruscope.linalg.analysis import analyse
from intruscope.linalg.operators import Operator

if TYPE_CHECKING:
    from conftest import Claims
    from intruscope.linalg.certificates import TopAccount
    from intruscope.linalg.golub_kahan import RitzSystem

SHAPES = ((200, 200), (240, 196), (196, 240))
WAYS = (("float32", "low_rank"), ("bfloat16", "dense"), ("float64", "low_rank"))
K = 2
UNDECIDED_BY_NATURE = {"cluster_1e-13": 0.1}
"""Gaps of a few hundred roundings: the stated error of the vectors is large."""


def account_faults(claims: list[tuple[RitzSystem, TopAccount]], matrix: np.ndarray, label: str) -> list[str]:
    """Accounts that miss a singular value, invent one, or claim a gap that is not there."""
    true = np.linalg.svd(matrix, compute_uv=False)
    slack = 1e-13 * true[0]
    faults = []
    for system, account in claims:
        if account.count == 0:
            continue
        # The analysis scales extreme matrices by a power of two; the claims are about the scaled one.
        scale = 2.0 ** round(float(np.log2(float(system.values[0]) / true[0]))) if true[0] > 0 else 1.0
        values = true * scale
        above, near = (values > account.floor + slack * scale), (values > account.floor - slack * scale)
        if not int(above.sum()) <= account.count <= int(near.sum()):
            faults.append(f"{label}: {account.count} accounted for above {account.floor}, true {values[:12]}")
            continue
        for j in range(account.count):
            same = account.cluster.numpy() == int(account.cluster[j])
            others = np.concatenate([values[: account.count][~same], values[account.count :]])
            distance = np.abs(others - float(system.values[j])).min() if len(others) else np.inf
            if float(account.gap[j]) > distance + slack * scale:
                faults.append(f"{label}: gap {float(account.gap[j])} of value {j}, true {distance}")
    return faults


def hold_to_the_truth(
    made: Case, claims: Claims, *, k: int, side: str, label: str, tally: Tally, seed: int = 0
) -> tuple[str, ...]:
    claims.clear()
    found = analyse(made.base_OI, **made.given, k=k, sides=(side,), seed=seed)
    single = made.base_OI.dtype == torch.float32
    blunt = float32_resolution(*made.base_OI.shape) if single else BLUNT
    truth = compare(found.sides[side], made, k, side, label, tally, blunt=blunt)
    for step, bounds in enumerate(claims.bounds):
        tally.faults += bound_faults(bounds, truth, f"{label} {side} step {step}")
    tally.faults += account_faults(claims.tuned_accounts, made.tuned_double, f"{label} tuned")
    tally.faults += account_faults(claims.base_accounts, made.base_double, f"{label} base {side}")
    smallest = np.linalg.svd(made.base_double, compute_uv=False)[-1]
    tally.faults += [f"{label}: floor {f} above {smallest}" for f in claims.floors if f > smallest]
    if found.spectrum.certificate != "dense":
        assert claims.tuned_accounts
        assert 0 < found.spectrum.failure_probability <= 1e-8
    return found.sides[side].certificates


@pytest.mark.parametrize("kind", [kind for kind in BASES if kind != "zero"])
def test_every_claim_holds(kind: str, claims: Claims, krylov_when_small: None) -> None:
    tally = Tally()
    number = list(BASES).index(kind)
    for way, (storage, update) in enumerate(WAYS):
        rows, columns = SHAPES[(number + way) % 3]
        side = ("left", "right")[(number + way // 2) % 2]
        made = case(kind, rows, columns, storage=storage, update=update, rank=5, seed=way)
        label = f"{kind} {rows}x{columns} {storage} {update}"
        hold_to_the_truth(made, claims, k=K, side=side, label=label, tally=tally)
    assert not tally.faults, tally.report()
    # One of 42 may lie at a threshold.
    assert tally.undecided_fraction <= UNDECIDED_BY_NATURE.get(kind, 0.025)


def _decaying(rows: int, columns: int, *, update: str, seed: int) -> Case:
    """A quickly falling spectrum, on which the Krylov path decides without help even when small."""
    rng = np.random.default_rng([seed, rows, columns])
    size = min(rows, columns)
    left, right = orthonormal(rows, size, rng), orthonormal(columns, size, rng)
    base = (left * np.arange(1.0, size + 1) ** -1.0) @ right.T
    left_OR = 0.9 * orthonormal(rows, 1, rng) + 0.3 * left[:, 2:3]
    right_RI = orthonormal(columns, 1, rng).T
    if update == "low_rank":
        return Case(
            base_OI=stored(base, "float32"),
            left_OR=stored(left_OR, "float32"),
            right_RI=stored(right_RI, "float32"),
            tuned_OI=None,
        )
    tuned = stored(base + left_OR @ right_RI, "float32")
    return Case(base_OI=stored(base, "float32"), left_OR=None, right_RI=None, tuned_OI=tuned)


@pytest.mark.parametrize("update", ["low_rank", "dense"])
@pytest.mark.parametrize(("rows", "columns"), [(380, 380), (410, 360), (360, 410)])
def test_decides_without_the_dense_path_where_the_spectrum_falls(
    rows: int, columns: int, update: str, claims: Claims, krylov_when_small: None
) -> None:
    tally = Tally()
    made = _decaying(rows, columns, update=update, seed=3)
    certificates: list[str] = []
    for side in ("left", "right"):
        certificates += hold_to_the_truth(made, claims, k=3, side=side, label="decaying", tally=tally)
    assert not tally.faults, tally.report()
    assert "dense" not in certificates


@pytest.mark.parametrize("shape", [(500, 400), (400, 500)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_bases_leading_vectors_come_along(
    shape: tuple[int, int], side: Literal["left", "right"], krylov_when_small: None
) -> None:
    """From the Krylov space and from the dense decomposition: projectors as of LAPACK's vectors."""
    rng = np.random.default_rng(0)
    base = torch.from_numpy(with_spectrum(np.arange(1.0, 401.0) ** -0.8, *shape, rng)).float()
    tuned = base + torch.from_numpy(orthonormal(shape[0], 1, rng) @ orthonormal(shape[1], 1, rng).T).float()
    u, _, vt = torch.linalg.svd(base.double(), full_matrices=False)
    spaces = [u[:, :4], vt[:4].T]
    for dense in (False, True):
        found = analyse(base, tuned_OI=tuned, k=4, sides=(side,), dense=dense, thresholds=(0.5,)).sides[side]
        assert (found.certificates[0] == "dense") == dense
        assert found.base_top is not None
        for one, space in zip(found.base_top, spaces if side == "left" else spaces[::-1], strict=True):
            assert one.shape == space.shape
            assert float((one @ one.T - space @ space.T).norm()) < (1e-6 if dense else 1e-2)


def test_bounds_close_in_on_the_truth(claims: Claims, krylov_when_small: None) -> None:
    """More steps never make a worse claim that matters, and the last is far from vacuous."""
    made = _decaying(420, 420, update="low_rank", seed=2)
    truth = compare(
        analyse(made.base_OI, **made.given, k=3).sides["left"], made, 3, "left", "closing", Tally()
    )
    last = claims.bounds[-1]
    assert (last.upper.numpy() - truth.alignment).max() < 0.3
    for epsilon in THRESHOLDS:
        decided = (last.upper < epsilon) | (last.lower >= epsilon)
        assert bool(decided.all())


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(700, 700), (1000, 680), (680, 1000)])
def test_at_a_size_that_needs_no_help(
    rows: int, columns: int, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "DENSE_LIMIT", 640)
    tally = Tally()
    made = case("power_law_0.5", rows, columns, storage="float32", update="low_rank", rank=8, strength=0.4)
    for side in ("left", "right"):
        certificates = hold_to_the_truth(made, claims, k=10, side=side, label="natural", tally=tally)
        assert len(certificates) == 10
    assert not tally.faults, tally.report()
    assert tally.undecided_fraction <= 0.02


@pytest.mark.parametrize("kind", [kind for kind in BASES if kind != "zero"])
@pytest.mark.parametrize("shape", [(200, 200), (196, 240)])
def test_a_space_from_few_vectors_alone_bounds_their_alignments(kind: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(len(kind))
    base = stored(BASES[kind](*shape, rng), "float32")
    left = np.linalg.svd(base.double().numpy(), full_matrices=False)[0]
    # One vector that leans on a base vector (0.8), and one at random: only the second can fall to 0.5.
    leaning = 0.8 * left[:, 3] + 0.6 * orthonormal(shape[0], 4, rng) @ np.full(4, 0.5)
    vectors = np.stack([leaning / np.linalg.norm(leaning), orthonormal(shape[0], 1, rng)[:, 0]], axis=1)
    truth = np.abs(left.T @ vectors).max(axis=0)
    upper = alignment._grown_alone(
        Operator.of(base).transposed,
        torch.from_numpy(vectors),
        torch.full((2,), 0.5, dtype=torch.float64),
        1.001 * float(torch.linalg.matrix_norm(base.double())),
        torch.Generator().manual_seed(0),
    ).numpy()
    assert (upper >= truth - 1e-6).all(), (upper, truth)
    assert (upper <= 1.0).all()
    if kind in ("gaussian", "spike_far"):
        assert upper[1] <= max(0.5, 1.1 * truth[1])
        assert upper[0] <= 1.1 * truth[0]
