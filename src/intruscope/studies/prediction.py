"""When does an update of random directions become a singular vector of its own among a matrix's leading ones?

For a matrix X (n x m, n <= m) with bulk singular values s_i and a rank-one update of size theta along random
directions, the new singular value z solves ``D(z) = 1 / theta^2`` with ::

    D(z) = (1/n sum z / (z^2 - s_i^2)) (1/m sum z / (z^2 - s_i^2) + (1 - n/m) / z)

(Benaych-Georges and Nadakuditi 2012, theorem 2.8). It is among the k leading ones where z exceeds the k-th
singular value of X, so the threshold on theta is ``D(s_k)^(-1/2)``, the sums taken over what lies below s_k.
A larger update intrudes if its directions are none of the base's; that a threshold on the update's largest
singular value tells where intruders appear is what arXiv 2607.23711 reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_BELOW = 0.99
"""What lies closer to s_k than this is left out of the sums: one near neighbour, by its pole, would
outweigh a bulk of hundreds."""


def threshold(singular_values: ArrayLike, shape: tuple[int, int], k: int) -> float | None:
    """Size from which a random rank-one update is among the k leading singular vectors.

    Args:
        singular_values: Of the base matrix, falling, all of them.
        shape: Of the matrix, either way round.
        k: Leading vectors.

    Returns:
        In units of the singular values; None where nothing lies below the k-th.
    """
    values = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1]
    small, large = min(shape), max(shape)
    z = float(values[min(k, len(values)) - 1])
    bulk = values[values < _BELOW * z]
    if len(values) <= k or not len(bulk):
        return None
    total = float((z / (z**2 - bulk**2)).sum())
    rows = len(bulk)  # the leading ones are no part of the bulk
    return float(
        ((total / rows) * (total / (rows + large - small) + (large - small) / (rows + large - small) / z))
        ** -0.5
    )
