"""How one matrix's leading vectors lie to the base's: the map and two profiles of the paper's first figures.

A study keeps one matrix of each run that a picture shows, the same for every arm: the output projection of
the attention in the middle layer. It is square, so that the base's left vectors span the whole space and a
blank column is a new direction and not one that the base had no room for; and every architecture has it as a
matrix of its own, where query, key and value may be fused or shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.spectra.scan import plan
from intruscope.studies.weights import EPSILON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from intruscope.weights.matrices import MatrixPair

MAP_SIZE = 32
"""Leading vectors of the base and of the tuned matrix."""
_KIND = "o"
_LEVELS = 100


def similarity_figures(base: str, tuned: str) -> dict[str, Any]:
    """Absolute cosines of the base's left singular vectors with the tuned matrix's, of the one matrix.

    Args:
        base: Model before.
        tuned: Model after, or adapter.

    Returns:
        ``similarity``: None where no layer has such a matrix, otherwise ``matrix`` (its name), ``num_base``
        and ``num_tuned`` (leading vectors, :data:`MAP_SIZE` at most), ``hundredths`` (cosines times 100,
        rounded; base vectors down, tuned ones across, row by row), and ``profiles``: of the first intruder
        and the first other vector among the tuned ones, where there is one, ``place`` (from 0, by falling
        singular value) and ``hundredths`` against *every* base vector.

    Raises:
        IntruscopeError: a file is damaged.

    Numerics: both matrices are decomposed densely in float64.
    """
    import torch

    pair = chosen_matrix(plan(base, tuned).pairs)
    if pair is None:
        return {"similarity": None}
    base_OI, tuned_OI = pair.load_float64()
    before_OR = torch.linalg.svd(base_OI, full_matrices=False).U
    after_OR = torch.linalg.svd(tuned_OI, full_matrices=False).U
    count = min(MAP_SIZE, before_OR.shape[1])
    cosines_RK = (before_OR.T @ after_OR[:, :count]).abs().clamp(max=1.0)
    is_intruder = (cosines_RK.amax(dim=0) < EPSILON).tolist()
    profiles = {}
    for name, wanted in (("intruder", True), ("other", False)):
        if wanted in is_intruder:
            place = is_intruder.index(wanted)
            profiles[name] = {"place": place, "hundredths": _hundredths(cosines_RK[:, place])}
    return {
        "similarity": {
            "matrix": pair.name,
            "num_base": count,
            "num_tuned": count,
            "hundredths": _hundredths(cosines_RK[:count]),
            "profiles": profiles,
        }
    }


def chosen_matrix(pairs: Sequence[MatrixPair]) -> MatrixPair | None:
    """The output projection of the middle layer; None without one."""
    found = {
        pair.layer: pair
        for pair in pairs
        if pair.kind == _KIND and pair.layer is not None and pair.scope == "paper"
    }
    return found[sorted(found)[len(found) // 2]] if found else None


def _hundredths(cosines: Tensor) -> list[int]:
    return [round(_LEVELS * value) for value in cosines.flatten().tolist()]
