"""Matrices that have broken singular value codes, by name, from a seed.

Each builder takes (rows, columns, rng) and returns float64; ``stored`` rounds it as a file would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Builder = Callable[[int, int, np.random.Generator], np.ndarray]


def orthonormal(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Haar-distributed orthonormal columns."""
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return q * np.sign(np.diag(r))


def with_spectrum(values: np.ndarray, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """U diag(values) Vᵀ with Haar U and V."""
    size = min(rows, columns)
    return (orthonormal(rows, size, rng) * values) @ orthonormal(columns, size, rng).T


def gaussian(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((rows, columns)) / np.sqrt(columns)


def student_t(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(2.5, (rows, columns)) / np.sqrt(columns)


def power_law(exponent: float) -> Builder:
    def build(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
        return with_spectrum(np.arange(1.0, min(rows, columns) + 1) ** -exponent, rows, columns, rng)

    return build


def graded_rows(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return np.logspace(0, -6, rows)[:, None] * rng.standard_normal((rows, columns))


def graded_spectrum(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return with_spectrum(np.logspace(0, -14, min(rows, columns)), rows, columns, rng)


def spiky_rows(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A few rows carry nearly everything, and so nearly all rounding errors."""
    matrix = rng.standard_normal((rows, columns)) / np.sqrt(columns)
    matrix[rng.choice(rows, max(1, rows // 60), replace=False)] *= 300.0
    return matrix


def spiky_columns(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return spiky_rows(columns, rows, rng).T.copy()


def kahan(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    size = max(rows, columns)
    s, c = np.sin(1.2), np.cos(1.2)
    whole = np.diag(s ** np.arange(size)) @ (np.eye(size) - c * np.triu(np.ones((size, size)), 1))
    return whole[:rows, :columns].copy()


def hilbert(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return 1.0 / (1.0 + np.arange(rows)[:, None] + np.arange(columns)[None, :])


def rank_deficient(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    rank = max(1, min(rows, columns) // 3)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / rank


def zero(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((rows, columns))


def identity(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    return np.eye(rows, columns)


def duplicated_rows(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    half = rng.standard_normal(((rows + 1) // 2, columns))
    return np.concatenate([half, half])[:rows]


def cluster(gap: float) -> Builder:
    """Values in groups of three, ``gap`` apart inside a group."""

    def build(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
        index = np.arange(min(rows, columns))
        values = (1.0 + index // 3) ** -0.7 * (1.0 - gap * (index % 3))
        return with_spectrum(values, rows, columns, rng)

    return build


def spiked(strength: float) -> Builder:
    """Noise plus one direction, ``strength`` times the value at which it leaves the noise (BGN 2012)."""

    def build(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal((rows, columns)) / np.sqrt(columns)
        threshold = (rows / columns) ** 0.25
        return noise + strength * threshold * orthonormal(rows, 1, rng) @ orthonormal(columns, 1, rng).T

    return build


BASES: dict[str, Builder] = {
    "gaussian": gaussian,
    "student_t": student_t,
    "power_law_0.3": power_law(0.3),
    "power_law_0.5": power_law(0.5),
    "power_law_1.0": power_law(1.0),
    "graded_rows": graded_rows,
    "graded_spectrum": graded_spectrum,
    "spiky_rows": spiky_rows,
    "spiky_columns": spiky_columns,
    "kahan": kahan,
    "hilbert": hilbert,
    "rank_deficient": rank_deficient,
    "zero": zero,
    "identity": identity,
    "duplicated_rows": duplicated_rows,
    "cluster_0": cluster(0.0),
    "cluster_1e-15": cluster(1e-15),
    "cluster_1e-13": cluster(1e-13),
    "cluster_1e-11": cluster(1e-11),
    "cluster_1e-9": cluster(1e-9),
    "cluster_1e-7": cluster(1e-7),
    "cluster_1e-5": cluster(1e-5),
    "cluster_1e-3": cluster(1e-3),
    "spike_below": spiked(0.9),
    "spike_above": spiked(1.15),
    "spike_far": spiked(2.5),
}

SCALES: dict[str, float] = {
    "2^-60": 2.0**-60,
    "2^40": 2.0**40,
    "near_underflow": 2.0**-120,
    "near_overflow": 2.0**118,
}

STORAGES: dict[str, tuple[torch.dtype, torch.dtype]] = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.float32),
}
"""Name -> (dtype of the file, dtype handed to the analysis)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base matrix and its update, as the analysis gets them, and the tuned matrix in float64."""

    base_OI: Tensor
    left_OR: Tensor | None
    right_RI: Tensor | None
    tuned_OI: Tensor | None

    @property
    def base_double(self) -> np.ndarray:
        return self.base_OI.double().numpy()

    @property
    def tuned_double(self) -> np.ndarray:
        if self.tuned_OI is not None:
            return self.tuned_OI.double().numpy()
        assert self.left_OR is not None
        assert self.right_RI is not None
        return self.base_double + self.left_OR.double().numpy() @ self.right_RI.double().numpy()

    @property
    def given(self) -> dict[str, Tensor | None]:
        """The update as keyword arguments of ``analyse``."""
        return {"left_OR": self.left_OR, "right_RI": self.right_RI, "tuned_OI": self.tuned_OI}


def stored(matrix: np.ndarray, storage: str) -> Tensor:
    file_dtype, working = STORAGES[storage]
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(file_dtype).to(working)


def case(
    kind: str,
    rows: int,
    columns: int,
    *,
    storage: str = "float32",
    update: str = "low_rank",
    strength: float = 0.7,
    rank: int = 4,
    scale: float = 1.0,
    seed: int = 0,
) -> Case:
    """A named base with an update whose singular values straddle the base's leading ones."""
    rng = np.random.default_rng([seed, rows, columns, sum(map(ord, kind))])
    base = BASES[kind](rows, columns, rng)
    norm = max(float(np.linalg.norm(base, 2)), 1e-3)
    rank = min(rank, rows, columns)
    sizes = strength * norm * np.linspace(1.3, 0.4, rank)
    left = orthonormal(rows, rank, rng) * sizes
    right = orthonormal(columns, rank, rng).T
    base_OI = stored(scale * base, storage)
    if update == "low_rank":
        return Case(
            base_OI=base_OI,
            left_OR=stored(scale * left, storage),
            right_RI=stored(right, storage),
            tuned_OI=None,
        )
    noise = 0.02 * norm * rng.standard_normal((rows, columns)) / np.sqrt(max(rows, columns))
    tuned = stored(scale * (base + left @ right + noise), storage)
    return Case(base_OI=base_OI, left_OR=None, right_RI=None, tuned_OI=tuned)
