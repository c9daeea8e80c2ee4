"""Random rotations of an update: the same singular values in random directions.

How many intruders would an update of this spectrum make by chance? In high dimension nearly every
random direction counts as one, so a count means little without this null beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intruscope.linalg.lowrank import low_rank_svd


def rotate_low_rank(left_OR: Tensor, right_RI: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Factors of an update with the same singular values and Haar-random singular vectors.

    Returns:
        (left (O, r), right (r, I)) in the dtype of the inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    _, values, _ = low_rank_svd(left_OR, right_RI)
    left = haar_columns(left_OR.shape[0], len(values), generator)
    right = haar_columns(right_RI.shape[1], len(values), generator)
    return (left * values).to(left_OR.dtype), right.T.to(right_RI.dtype)


def rotate_dense(update_OI: Tensor, *, seed: int) -> Tensor:
    """A full update with the same singular values and randomised directions, without an SVD.

    On each side: random signs, an orthonormal fast transform (DCT-II), a random permutation, twice.
    The map is exactly orthogonal up to rounding; two rounds leave no trace of single coordinates.

    Source: the fast Johnson-Lindenstrauss construction of Ailon & Chazelle 2009, used as a rotation.
    """
    generator = torch.Generator().manual_seed(seed)
    rotated = update_OI
    for _ in range(2):
        rotated = _mix_rows(rotated, generator)
    rotated = rotated.T
    for _ in range(2):
        rotated = _mix_rows(rotated, generator)
    return rotated.T.contiguous()


def haar_columns(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Uniformly random orthonormal columns, (size, min(size, count)), float64."""
    gaussian = torch.randn((size, count), generator=generator, dtype=torch.float64)
    basis, upper = torch.linalg.qr(gaussian)
    # Without the signs the QR of a Gaussian is not Haar (Mezzadri 2007).
    rotated: Tensor = basis * upper.diagonal().sign()
    return rotated


def _mix_rows(matrix: Tensor, generator: torch.Generator) -> Tensor:
    from scipy.fft import dct

    size = matrix.shape[0]
    signs = torch.randint(0, 2, (size, 1), generator=generator).to(matrix.dtype) * 2 - 1
    mixed = torch.from_numpy(dct((matrix * signs).numpy(), axis=0, norm="ortho"))
    return mixed[torch.randperm(size, generator=generator)]
