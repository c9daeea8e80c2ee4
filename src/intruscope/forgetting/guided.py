"""Two models' predictions mixed: log p = log p_base + gamma (log p_tuned - log p_base), up to a constant.

This is the geometric mixture p_base^(1 - gamma) p_tuned^gamma, normalised. A gamma of 0 is the base, 1 the
tuned model; between them the predictions lie between both, and above 1 they are extrapolated.

Source: Liu et al. 2024 (arXiv 2402.02992, decoding-time realignment), among others. It is not the model with
    its update scaled by gamma, because a network is not linear in its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from intruscope.adapters.live import LivePair


def checked_gamma(gamma: float) -> float:
    """The same gamma.

    Raises:
        UsageError: it is negative, NaN or infinite.
    """
    if not (math.isfinite(gamma) and gamma >= 0.0):
        raise UsageError(
            f"gamma is {gamma:g}, but it must be a finite number of at least 0",
            remedy="use 0 for the base, 1 for the tuned model, or a number between them",
        )
    return float(gamma)


def mixed(base: Tensor, tuned: Tensor, gamma: float) -> Tensor:
    """The mixture of two models' predictions.

    Args:
        base: Logits or log-probabilities of the base over the last axis, float32 or wider.
        tuned: The tuned model's, of the same shape and type.
        gamma: At 0 and 1 the result is the given tensor itself, to the last bit.

    Returns:
        Logits of the mixture. What either model rules out (-inf) stays ruled out, unless gamma is 0 or 1.
    """
    import torch

    if gamma == 0.0:
        return base
    if gamma == 1.0:
        return tuned
    ruled_out = torch.isneginf(base) | torch.isneginf(tuned)
    return torch.lerp(base, tuned, gamma).masked_fill_(ruled_out, -math.inf)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """A loaded pair whose base predicts together with its present state.

    Attributes:
        pair: The pair, in its tuned state or with an adapter switched on.
        gamma: Checked by :func:`checked_gamma`.
    """

    pair: LivePair
    gamma: float

    def logits(self, run: Callable[[], Tensor]) -> Tensor:
        """Logits of the mixture.

        Args:
            run: Logits of the pair in the state that it is in. It is called in that state and as the base,
                or in one of them where gamma is 1 or 0.
        """
        import torch

        def wide() -> Tensor:
            found = run()
            return found.to(torch.promote_types(found.dtype, torch.float32))

        if self.gamma == 1.0:
            return wide()
        with self.pair.as_base():
            before = wide()
        if self.gamma == 0.0:
            return before
        return mixed(before, wide(), self.gamma)
