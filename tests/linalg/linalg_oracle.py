"""The naive twin: two dense float64 SVDs in NumPy, absolute cosines, and what depends on the basis.

Nothing here is shared with the package. Slow, short, and meant to be read.

Shape suffixes: M rows, N columns, R counted base vectors, K tuned vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ULP = float(np.finfo(np.float64).eps)
DEFAULT_RESOLUTION = 64.0


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Alignment of the leading tuned vectors with all counted base vectors, for one side.

    Attributes:
        alignment: max_i |u_i · y_j| for the basis LAPACK happened to choose (K,).
        attained: The least alignment that some equally valid choice of bases attains (K,).
        supremum: The greatest alignment over all equally valid choices (K,).
        error: How far rounding may have moved any of the three (K,).
        depends: Whether the alignment depends on the choice of basis by more than its error (K,).
        clustered: Whether the tuned vector, or base vectors that could hold it, share a cluster (K,).
    """

    alignment: np.ndarray
    attained: np.ndarray
    supremum: np.ndarray
    error: np.ndarray
    depends: np.ndarray
    clustered: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Half:
    """All left vectors (null vectors with value 0), their clusters and rounding errors."""

    vectors_MR: np.ndarray
    values: np.ndarray
    label: np.ndarray
    error: np.ndarray


def _decompose(matrix_MN: np.ndarray, resolution: float) -> _Half:
    """Full SVD; neighbours closer than ``resolution`` (times ulp, the norm and √max) share a label."""
    rows, columns = matrix_MN.shape
    left, values, _ = np.linalg.svd(matrix_MN, full_matrices=True)
    values = np.concatenate([values, np.zeros(rows - min(rows, columns))])
    noise = ULP * max(rows, columns) ** 0.5 * values[0]
    label = np.concatenate([[0], np.cumsum(values[:-1] - values[1:] > resolution * noise)]).astype(int)
    gap = np.full(rows, np.inf)
    for number in range(label[-1] + 1):
        inside = label == number
        if not inside.all():
            others = values[~inside]
            gap[inside] = np.abs(values[inside][:, None] - others[None, :]).min(axis=1)
    error = np.minimum(1.0, 4.0 * noise / np.maximum(gap, 1e-300)) if values[0] > 0 else np.zeros(rows)
    return _Half(vectors_MR=left, values=values, label=label, error=error)


def num_counted(values: np.ndarray, shape: tuple[int, int]) -> int:
    """Values above max(M, N) ulp of the largest."""
    return int((values > max(shape) * ULP * values[0]).sum()) if values[0] > 0 else 0


def naive_alignment(
    base_MN: np.ndarray,
    tuned_MN: np.ndarray,
    k: int,
    *,
    side: str = "left",
    resolution: float = DEFAULT_RESOLUTION,
) -> Truth:
    """The paper's quantity by brute force, with the range it has over all valid bases."""
    if side == "right":
        base_MN, tuned_MN = base_MN.T, tuned_MN.T
    base, tuned = _decompose(base_MN, resolution), _decompose(tuned_MN, resolution)
    kept = min(num_counted(base.values[: min(base_MN.shape)], base_MN.shape), *base_MN.shape)
    k = min(k, *tuned_MN.shape)
    groups = _groups(base, kept)
    rng = np.random.default_rng(0)
    rows: list[tuple[float, float, float, float, bool, bool]] = []
    for j in range(k):
        members = tuned.vectors_MR[:, tuned.label == tuned.label[j]]
        samples = [tuned.vectors_MR[:, j]]
        if members.shape[1] > 1:
            mixes = rng.standard_normal((members.shape[1], 64))
            samples += list((members @ (mixes / np.linalg.norm(mixes, axis=0))).T)
        samples_MS = np.stack(samples, axis=1)
        norms_GS = np.empty((len(groups), samples_MS.shape[1]))
        for number, group in enumerate(groups):
            norms_GS[number] = np.linalg.norm(group.vectors_MR.T @ samples_MS, axis=0)
        least_share = np.array([group.least_share for group in groups])
        errors = np.array([group.error for group in groups])
        spans = [
            float(np.linalg.norm(group.vectors_MR.T @ members, 2)) if members.shape[1] > 1 else float(norm[0])
            for group, norm in zip(groups, norms_GS, strict=True)
        ]
        least = float((norms_GS * least_share[:, None]).max(axis=0).min()) if kept else 0.0
        supremum = max(spans) if kept else 0.0
        alignment = float(np.abs(base.vectors_MR[:, :kept].T @ samples[0]).max()) if kept else 0.0
        # Only groups that could hold the maximum matter: their share plus error reaches the best one.
        could_hold = np.array(spans) + errors >= (norms_GS[:, 0] * least_share - errors).max(initial=0.0)
        error = float(errors[could_hold].max(initial=0.0))
        error = min(1.0, error + float(tuned.error[j]) + 8 * ULP * len(samples[0]) ** 0.5)
        clustered = members.shape[1] > 1 or bool((least_share[could_hold] < 1).any())
        rows.append((alignment, least, supremum, error, supremum - least > 1e-6 + 2 * error, clustered))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Truth(
        alignment=columns[0],
        attained=columns[1],
        supremum=columns[2],
        error=columns[3],
        depends=columns[4].astype(bool),
        clustered=columns[5].astype(bool),
    )


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Base vectors that cannot be told apart, and what of their joint share a single one must hold."""

    vectors_MR: np.ndarray
    least_share: float
    error: float


def _groups(base: _Half, kept: int) -> list[_Group]:
    """The clusters with counted vectors. One that reaches below the count may hand all to those below."""
    found = []
    for number in np.unique(base.label[:kept]):
        inside = base.label == number
        found.append(
            _Group(
                vectors_MR=base.vectors_MR[:, inside],
                least_share=1.0 / inside.sum() ** 0.5 if inside[:kept].sum() == inside.sum() else 0.0,
                error=float(base.error[inside].max()),
            )
        )
    return found
