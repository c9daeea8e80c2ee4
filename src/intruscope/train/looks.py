"""One look at one matrix during training, from where the last look left off.

A look gives the verdicts of a scan of the same state: small matrices are followed by
:mod:`intruscope.linalg.warm`, whose result is proved complete, and whatever that leaves open is analysed
exactly as a scan does it.

Shape suffixes: O out, I in, R rank, S smaller side, K kept vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from intruscope.linalg.alignment import Alignments, align
from intruscope.linalg.analysis import analyse
from intruscope.linalg.dense import DenseSides
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.operators import Operator
from intruscope.linalg.warm import GUARD, gram_of, gram_with, start_from, warm_triplets
from intruscope.spectra.matrix import seed_for
from intruscope.spectra.sides import verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.adapters.live_matrices import Form
    from intruscope.linalg.dense import BaseVectors
    from intruscope.linalg.topk import TopTriplets
    from intruscope.spectra.records import ScanSettings, Verdict

How = Literal["warm", "full", "refused"]
_SAME = 0.5
"""Two vectors of successive looks are one that turned when more than this of each lies in the other."""


@dataclass(frozen=True, kw_only=True)
class VectorLook:
    """One of the leading singular vectors of a matrix at one look.

    Attributes:
        singular_value: Singular value.
        alignment_lower, alignment_upper: Bounds on its alignment with the base (left side).
        verdict: Verdict, as in a scan.
        track: Number of the vector within its matrix; it stays the same while the vector turns slowly.
        turned: Rotation since the last look in degrees; None if it was not seen then.
        born: It is an intruder now and was not at the last look; always False at the first look.
    """

    singular_value: float
    alignment_lower: float
    alignment_upper: float
    verdict: Verdict
    track: int
    turned: float | None
    born: bool


@dataclass(frozen=True, kw_only=True)
class MatrixLook:
    """The top of one matrix at one look.

    Attributes:
        name: Name of the matrix, as in a scan.
        how: ``warm`` from the last look, ``full`` as a scan, or ``refused`` (weights that are not finite).
        vectors: Leading vectors in descending order of singular value.
    """

    name: str
    how: How
    vectors: tuple[VectorLook, ...]


class MatrixWatch:
    """Follows one matrix from look to look.

    Args:
        name: Name of the matrix.
        base: Gives the base's matrix, (O, I) in float32 or wider.
        settings: k, epsilon and the seed.
    """

    def __init__(self, name: str, base: Callable[[], Tensor], settings: ScanSettings) -> None:
        self.name = name
        self._base = base
        self._settings = settings
        self._k = int(settings.k)
        self._dense = DenseSides()
        self._base_gram_SS: Tensor | None = None
        self._block_SC: Tensor | None = None
        self._left_OK: Tensor | None = None
        self._before: tuple[VectorLook, ...] = ()
        self._num_tracks = 0

    def go_on(self, last: MatrixLook | None, num_tracks: int) -> None:
        """Take up the numbers of an earlier run.

        Args:
            last: Its look at this very state, whose vectors the next look will find again; None where there
                is none.
            num_tracks: Number of tracks it assigned.
        """
        self._before = last.vectors if last is not None else ()
        self._num_tracks = num_tracks

    def look(self, form: Form) -> MatrixLook:
        """The verdicts of the matrix as it is now; under ``spectra.matrix.exact_arithmetic``."""
        base_OI = self._base()
        tensors = form if isinstance(form, tuple) else (form,)
        if not all(bool(torch.isfinite(end)) for tensor in tensors for end in torch.aminmax(tensor)):
            self._left_OK, self._block_SC, self._before = None, None, ()
            return MatrixLook(name=self.name, how="refused", vectors=())
        found = self._warm(base_OI, form)
        how: How = "warm"
        if found is None:
            found, how = self._full(base_OI, form), "full"
        triplets, alignments = found
        vectors = self._followed(triplets, alignments)
        self._left_OK, self._before = triplets.left_MK, vectors
        return MatrixLook(name=self.name, how=how, vectors=vectors)

    def _warm(self, base_OI: Tensor, form: Form) -> tuple[TopTriplets, Alignments] | None:
        """From the last look, the first from the base; None where a verdict stays open, or too large."""
        if min(base_OI.shape) > DENSE_LIMIT:
            return None
        seen = Operator.viewing(base_OI)
        if self._block_SC is None:
            self._block_SC = self._of_base(base_OI.double(), self._dense.of(seen, "left"))
        if isinstance(form, tuple):
            base_OI = base_OI.double()
            left_OR, right_RI = (factor.double() for factor in form)
            if self._base_gram_SS is None:
                self._base_gram_SS = gram_of(base_OI)
            operator = Operator.viewing(base_OI).plus(left_OR, right_RI)
            gram_SS = gram_with(self._base_gram_SS, base_OI, left_OR, right_RI)
        else:
            tuned_OI = form.double()
            operator, gram_SS = Operator.viewing(tuned_OI), gram_of(tuned_OI)
        found = warm_triplets(operator, gram_SS, self._block_SC, self._k)
        if found is None:
            return None
        alignments = align(
            seen,
            found.triplets,
            found.triplets.left_MK,
            found.triplets.left_error,
            thresholds=(self._settings.epsilon,),
            deciding=self._settings.epsilon,
            seed=0,
            dense=True,
            decompose=lambda: self._dense.of(seen, "left"),
        )
        self._block_SC = found.block_SC
        if any(self._verdict(alignments, i) in ("borderline", "degenerate") for i in range(self._k)):
            return None
        return found.triplets, alignments

    def _full(self, base_OI: Tensor, form: Form) -> tuple[TopTriplets, Alignments]:
        """As a scan: its bounds, its seed; a small base is decomposed once."""
        left, right, tuned = (*form, None) if isinstance(form, tuple) else (None, None, form)
        result = analyse(
            base_OI,
            left_OR=left,
            right_RI=right,
            tuned_OI=tuned,
            k=self._k,
            thresholds=(self._settings.epsilon,),
            deciding=self._settings.epsilon,
            seed=seed_for(self._settings, self.name, ""),
            shared=self._dense,
        )
        triplets = result.spectrum
        self._block_SC = self._start(triplets.left_MK, triplets.right_NK)
        return triplets, result.sides["left"]

    def _of_base(self, base_OI: Tensor, vectors: BaseVectors) -> Tensor:
        """The first block: the base's own leading vectors."""
        left_OK = vectors.left_MR[:, : self._k + GUARD]
        return self._start(left_OK, base_OI.T @ left_OK / vectors.values[: self._k + GUARD])

    def _start(self, left_OK: Tensor, right_IK: Tensor) -> Tensor:
        return start_from(left_OK, right_IK, k=self._k, seed=self._settings.seed)

    def _verdict(self, alignments: Alignments, index: int) -> Verdict:
        return verdict(alignments, index, self._settings.epsilon)

    def _followed(self, triplets: TopTriplets, alignments: Alignments) -> tuple[VectorLook, ...]:
        """The vectors with the numbers of those they were at the last look."""
        first = self._left_OK is None and not self._before
        earlier = self._earlier(triplets.left_MK)
        vectors = []
        for index, (place, cosine) in enumerate(earlier):
            before = self._before[place] if place is not None else None
            found = self._verdict(alignments, index)
            if before is None:
                track, self._num_tracks = self._num_tracks, self._num_tracks + 1
            else:
                track = before.track
            vectors.append(
                VectorLook(
                    singular_value=float(triplets.singular_values[index]),
                    alignment_lower=float(alignments.lower[index]),
                    alignment_upper=float(alignments.upper[index]),
                    verdict=found,
                    track=track,
                    turned=None if cosine is None else math.degrees(math.acos(min(1.0, cosine))),
                    born=found == "intruder"
                    and not first
                    and (before is None or before.verdict != "intruder"),
                )
            )
        return tuple(vectors)

    def _earlier(self, left_OK: Tensor) -> list[tuple[int | None, float | None]]:
        """For each vector its place at the last look, and the cosine; the closest pairs first."""
        count = left_OK.shape[1]
        if self._left_OK is None:  # the first look, or the first after a resumed run's last
            return [(i if i < len(self._before) else None, None) for i in range(count)]
        cosines = (self._left_OK.T @ left_OK).abs()
        found: list[tuple[int | None, float | None]] = [(None, None)] * count
        taken: set[int] = set()
        for flat in torch.argsort(cosines.flatten(), descending=True).tolist():
            place, index = divmod(flat, count)
            cosine = float(cosines[place, index])
            if cosine**2 <= _SAME:
                break
            if found[index][0] is None and place not in taken:
                found[index] = (place, cosine)
                taken.add(place)
        return found
