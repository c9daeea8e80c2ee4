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
        clustered: Whether the tuned vector, or the base vectors that hold it, share a cluster (K,).
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
    rng = np.random.default_rng(0)
    rows: list[tuple[float, float, float, float, bool, bool]] = []
    for j in range(k):
        members = tuned.vectors_MR[:, tuned.label == tuned.label[j]]
        samples = [tuned.vectors_MR[:, j]]
        if members.shape[1] > 1:
            mixes = rng.standard_normal((members.shape[1], 64))
            samples += list((members @ (mixes / np.linalg.norm(mixes, axis=0))).T)
        norms_GS, error = _cluster_norms(base, kept, np.stack(samples, axis=1))
        sizes = np.bincount(base.label[:kept], minlength=len(norms_GS)) if kept else np.ones(len(norms_GS))
        least = (norms_GS / np.sqrt(np.maximum(sizes, 1))[:, None]).max(axis=0).min()
        spans = [
            np.linalg.norm(base.vectors_MR[:, :kept][:, base.label[:kept] == g].T @ members, 2)
            for g in range(len(norms_GS))
        ]
        alignment = np.abs(base.vectors_MR[:, :kept].T @ samples[0]).max() if kept else 0.0
        supremum = max([*spans, 0.0]) if kept else 0.0
        holder = int(norms_GS[:, 0].argmax()) if kept else 0
        clustered = members.shape[1] > 1 or (kept > 0 and bool(sizes[holder] > 1))
        error = min(1.0, error + tuned.error[j] + 8 * ULP * len(samples[0]) ** 0.5)
        depends = supremum - least > 1e-6 + 2 * error
        rows.append((alignment, least, supremum, error, depends, clustered))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Truth(
        alignment=columns[0],
        attained=columns[1],
        supremum=columns[2],
        error=columns[3],
        depends=columns[4].astype(bool),
        clustered=columns[5].astype(bool),
    )


def _cluster_norms(base: _Half, kept: int, samples_MS: np.ndarray) -> tuple[np.ndarray, float]:
    """Norm of each sample's projection on each base cluster (G, S); the rounding of the largest ones."""
    if kept == 0:
        return np.zeros((1, samples_MS.shape[1])), 0.0
    cosines = base.vectors_MR[:, :kept].T @ samples_MS
    norms = np.zeros((int(base.label[:kept].max()) + 1, samples_MS.shape[1]))
    np.add.at(norms, base.label[:kept], cosines**2)
    norms = np.sqrt(norms)
    worst = np.zeros(len(norms))
    np.maximum.at(worst, base.label[:kept], base.error[:kept])
    # Only vectors that could hold the maximum matter: share plus error reaches the best share.
    could_hold = (norms + worst[:, None] >= (norms - worst[:, None]).max(axis=0) - 1e-12).any(axis=1)
    return norms, float(worst[could_hold].max())
