"""Pure tensor mathematics on single matrices: the notions of the paper, with bounds.

:func:`analyse` takes a base matrix and what became of it, and gives the tuned spectrum with certified bounds
on every alignment. :func:`intruders_by_chance` says how many intruders random directions would give,
:func:`effective_rank` how many directions an update uses, :func:`low_rank_svd` decomposes thin factors.
Knows no file and no model. Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import lazy_names

if TYPE_CHECKING:
    from intruscope.linalg.alignment import Alignments
    from intruscope.linalg.analysis import Analysis, analyse
    from intruscope.linalg.chance import intruders_by_chance
    from intruscope.linalg.effective_rank import effective_rank
    from intruscope.linalg.lowrank import low_rank_svd
    from intruscope.linalg.rotation import rotate_dense, rotate_low_rank
    from intruscope.linalg.topk import TopTriplets

__all__ = [
    "Alignments",
    "Analysis",
    "TopTriplets",
    "analyse",
    "effective_rank",
    "intruders_by_chance",
    "low_rank_svd",
    "rotate_dense",
    "rotate_low_rank",
]

_HOMES = {
    "Alignments": "intruscope.linalg.alignment",
    "Analysis": "intruscope.linalg.analysis",
    "TopTriplets": "intruscope.linalg.topk",
    "analyse": "intruscope.linalg.analysis",
    "effective_rank": "intruscope.linalg.effective_rank",
    "intruders_by_chance": "intruscope.linalg.chance",
    "low_rank_svd": "intruscope.linalg.lowrank",
    "rotate_dense": "intruscope.linalg.rotation",
    "rotate_low_rank": "intruscope.linalg.rotation",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
