"""What is certified of a base's spectrum while a Krylov space grows, and the alignments that follow at once.

The leading triplets, complete down to a cut, with the error of each vector; and a floor of a tall base's
spectrum. Once certified, they stay true as the space grows.

Shape suffixes: M rows, N columns, C accounted triplets, K tuned vectors, F functionals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.linalg import clusters
from intruscope.linalg.certificates import (
    FAILURE_PROBABILITY,
    TopAccount,
    account_for_top,
    smallest_counted_value,
)
from intruscope.linalg.refine import Triplets, refine
from intruscope.linalg.topk import ritz_triplets

if TYPE_CHECKING:
    from intruscope.linalg.golub_kahan import RitzSystem
    from intruscope.linalg.operators import Operator

_CONVERGED = 1e-3
"""A Ritz value with a smaller relative residual can be accounted for."""
_DEEPEST = 64
_POOR_SINE = 1e-3
_GOOD_SINE = 1e-2
"""Spaces of vectors that are known better can stand for the exact ones in shares of energy."""
_WELL_KNOWN = 0.05
"""Base vectors off by a smaller sine are compared one by one; the intervals take over below them."""


class KnownSpectrum:
    """What is certified of the base's spectrum: its top, with vectors, and a floor of its bottom.

    Attributes:
        floor: No singular value lies below it (tall bases; 0 while unknown).
        top: The accounted triplets, None before the first account.
        cut: No singular value lies above it but those of the well-known leading triplets.
        top_lower, top_upper: Bounds on the largest alignment with the accounted, and with those
            well-known, base vectors (K,).
        best_index: Of the accounted vector that attains the alignment, −1 where unknown (K,).
        limit: Upper bounds on the alignments that are known already (K,).
        failure_probability: Probability that any of this is wrong.
    """

    def __init__(self, work: Operator, tuned_left_MK: Tensor, *, ceiling: float, tall: bool) -> None:
        count = tuned_left_MK.shape[1]
        self.tall, self.ceiling, self.cut = tall, ceiling, ceiling
        self.limit = torch.ones(count, dtype=torch.float64)
        self.floor = 0.0
        self.failure_probability = 0.0
        self.top: Triplets | None = None
        self.top_lower = self.top_upper = torch.zeros(count, dtype=torch.float64)
        self.best_index = torch.full((count,), -1)
        self._work, self._tuned_left_MK = work, tuned_left_MK
        self._account: TopAccount | None = None
        self._wanted = count + 2

    def learn(self, system: RitzSystem) -> None:
        """Certify what is still missing or poor; what is certified once stays true as the space grows."""
        candidates, count = min(self._work.shape), self._tuned_left_MK.shape[1]
        random_KB = system.start_coordinates()[:, count:]
        complete = self._account is not None and self._account.count > self._wanted
        if not complete or self._poor():
            account = account_for_top(
                system,
                random_KB,
                wanted=self._wanted,
                ceiling=self.ceiling,
                num_candidates=candidates,
            )
            self.failure_probability += account.failure_probability
            if self._account is None or account.count >= self._account.count:
                self._account = account
                self._take(ritz_triplets(system, account), account)
        if self.tall and self.floor == 0.0:
            self.floor = smallest_counted_value(system, random_KB, num_candidates=candidates)
            self.failure_probability += FAILURE_PROBABILITY

    def learn_more(self, system: RitzSystem, undecided_K: Tensor) -> bool:
        """Look deeper or more exactly where that could decide a vector; False when it could not."""
        if not bool(undecided_K.any()) or self._account is None or self.top is None:
            return False
        count = self._tuned_left_MK.shape[1]
        cosines_KK = cosines(system, count, tall=self.tall)[:, undecided_K].abs()
        strongest = int(cosines_KK.argmax(dim=0).max())
        converged = float(system.residuals[strongest]) <= _CONVERGED * float(system.values[strongest])
        changed = False
        if strongest >= self._account.count and converged and self._wanted < _DEEPEST:
            self._wanted = min(strongest + 2, _DEEPEST)
            self.learn(system)
            changed = True
        if self._poor():
            refined = refine(self._work, self.top.left_MC, self.top.right_NC, floor=self._account.floor)
            if refined is not None and bool((refined.sine_error < self.top.sine_error)[:-1].any()):
                self._take(refined, self._account)
                changed = True
        return changed

    def leading(self, count: int) -> tuple[Tensor, Tensor] | None:
        """The first vectors of the top, on the side of the tuned vectors and on the other; None if poor."""
        if self.top is None or len(self.top.values) < count:
            return None
        if bool((self.top.sine_error[:count] > _GOOD_SINE).any()):
            return None
        pair = self.top.left_MC[:, :count], self.top.right_NC[:, :count]
        return pair if self.tall else pair[::-1]

    def _poor(self) -> bool:
        """Whether a vector above the last group is not well known."""
        return self.top is not None and bool((self.top.sine_error[:-1] > _POOR_SINE).any())

    def _take(self, top: Triplets, account: TopAccount) -> None:
        self.top = top
        left_MC = top.left_MC if self.tall else top.right_NC
        sure = _well_known(top)
        found = _with_top(top, sure, left_MC.T @ self._tuned_left_MK)
        self.top_lower, self.top_upper, self.best_index = found
        last = sure - 1
        self.cut = float(account.values[last] - account.gap[last]) if sure else self.ceiling


def cosines(system: RitzSystem, count: int, *, tall: bool) -> Tensor:
    """The products u · y for every Ritz vector on the side of the tuned vectors: (K, count)."""
    functionals_KF = system.start_coordinates()[:, :count]
    return functionals_KF / system.values.unsqueeze(1) if tall else functionals_KF


def _well_known(top: Triplets) -> int:
    """How many leading triplets, by whole clusters, are known to better than ``_WELL_KNOWN``.

    The last cluster is not among them: no gap below it is certified.
    """
    if not len(top.values):
        return 0
    poor = top.sine_error > _WELL_KNOWN
    poor[-1] = True
    return int((top.cluster < top.cluster[poor].min()).sum())


def _with_top(top: Triplets, sure: int, cosines_CF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds on the largest alignment with accounted base vectors, and the index of the best (−1: none).

    The lower bound is over all of them, the upper over the first ``sure``, which are whole clusters.
    """
    count = cosines_CF.shape[1]
    if not len(top.values):
        zero = torch.zeros(count, dtype=torch.float64)
        return zero, zero, torch.full((count,), -1)
    size = int(top.cluster.max()) + 1
    squares = torch.zeros((size, count), dtype=torch.float64)
    squares.index_add_(0, top.cluster, cosines_CF.square())
    members = torch.bincount(top.cluster, minlength=size).double().unsqueeze(1)
    errors = torch.zeros(size, dtype=torch.float64)
    errors = errors.scatter_reduce(0, top.cluster, top.sine_error, "amax").unsqueeze(1)
    # A cluster of d values attains between 1/√d of its joint share and all of it, by its basis.
    joint = squares.sqrt()
    lower = (clusters.sine_lower(joint, errors) / members.sqrt()).amax(dim=0)
    known = int(top.cluster[sure - 1]) + 1 if sure else 0
    upper = torch.zeros(count, dtype=torch.float64)
    if known:
        upper = clusters.sine_upper(joint[:known], errors[:known]).amax(dim=0)
    strongest = cosines_CF.abs().argmax(dim=0)
    # Named only when no other vector can hold more: it has over half of the squared length.
    alone = (members[top.cluster[strongest], 0] == 1) & (lower.square() > 0.5)
    return lower, upper, torch.where(alone, strongest, -1)
