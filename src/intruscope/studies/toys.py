"""Three small facts behind the paper, as functions that can be run and checked.

Shape suffixes: N width of a square matrix, O out, I in, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ToyIntruder:
    """What became of a matrix to which one random direction was added.

    Attributes:
        alignment: Of the new matrix's leading left singular vector with all those of the old one.
        overlap: |cosine| of that vector with the direction that was added.
        singular_value: Of it.
        largest_before: Largest singular value of the old matrix.
    """

    alignment: float
    overlap: float
    singular_value: float
    largest_before: float


def toy_intruder(base_NN: Array, ratio: float, *, seed: int = 0) -> ToyIntruder:
    """Add ``lambda v vᵀ`` along a random unit vector, lambda being a multiple of the largest singular value.

    Args:
        base_NN: A square matrix, finite and not zero.
        ratio: Lambda over its largest singular value; above 1 the new vector leads.
        seed: Of the direction.

    Source: arXiv 2410.21228v3, section 5.
    """
    v_N = np.random.default_rng(seed).normal(size=len(base_NN))
    v_N /= np.linalg.norm(v_N)
    before_NN, values_N, _ = np.linalg.svd(base_NN)
    after_NN, new_values_N, _ = np.linalg.svd(base_NN + ratio * values_N[0] * np.outer(v_N, v_N))
    leading_N = after_NN[:, 0]
    return ToyIntruder(
        alignment=float(np.abs(before_NN.T @ leading_N).max()),
        overlap=abs(float(leading_N @ v_N)),
        singular_value=float(new_values_N[0]),
        largest_before=float(values_N[0]),
    )


def least_aligned(basis_ON: Array, *, seed: int = 0) -> Array:
    """The unit vector that the best match among orthonormal columns matches least.

    For a basis of the whole space it is the sum of all columns with any signs over √n: it meets every one at
    1/√n, and no unit vector does with less, since the squared cosines add up to 1. Where the columns do not
    span the space (the thin left vectors of a tall matrix) a vector beside them all meets none.

    Args:
        basis_ON: Orthonormal columns.
        seed: Of the signs, or of the vector beside the columns.

    Returns:
        (O,), of length 1.
    """
    draw = np.random.default_rng(seed)
    rows, columns = basis_ON.shape
    if rows == columns:
        found: Array = basis_ON @ draw.choice([-1.0, 1.0], size=columns) / math.sqrt(columns)
        return found
    beside: Array = np.asarray(draw.normal(size=rows))
    for _ in range(2):  # once leaves rounding behind
        beside = beside - basis_ON @ (basis_ON.T @ beside)
    return beside / float(np.linalg.norm(beside))


def first_step_full(gradient_OI: Array, rate: float) -> Array:
    """The update of one plain gradient step of full fine-tuning: ``-rate G``.

    Args:
        gradient_OI: Of the loss by the matrix.
        rate: Learning rate.
    """
    return -rate * gradient_OI


def first_step_lora(gradient_OI: Array, start_RI: Array, *, alpha: float, rate: float) -> Array:
    """The update of one plain gradient step of LoRA: ``-rate (alpha/r)² G A₀ᵀ A₀``.

    B starts at zero, so that A does not move in the first step, and B moves by ``-rate (alpha/r) G A₀ᵀ``. The
    update is that of full fine-tuning seen through the r directions that A happened to draw.

    Args:
        gradient_OI: Of the loss by the whole matrix, at the base.
        start_RI: A at the start.
        alpha: Of LoRA.
        rate: Learning rate.

    Source: arXiv 2410.21228v3, section 5.
    """
    scale = alpha / start_RI.shape[0]
    found: Array = -rate * scale**2 * (gradient_OI @ start_RI.T) @ start_RI
    return found
