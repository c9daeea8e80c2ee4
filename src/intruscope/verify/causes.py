"""What probably went wrong where an adapter was applied at another scale, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PRINTED = 1e-3
"""Relative difference up to which two strengths print alike."""


@dataclass(frozen=True, kw_only=True)
class ScaleFacts:
    """How one adapter scales one module.

    Attributes:
        rank: Rank of the factors, r.
        scaling: alpha / r, or alpha / sqrt(r) with rsLoRA.
        is_rslora: The adapter uses rsLoRA (arXiv 2312.03732).
        weight: The weight that the adapter should have.
    """

    rank: int
    scaling: float
    is_rslora: bool
    weight: float

    @property
    def alpha(self) -> float:
        """``lora_alpha``."""
        return self.scaling * (math.sqrt(self.rank) if self.is_rslora else self.rank)


def scale_factors(scales: Sequence[ScaleFacts]) -> dict[float, list[str]]:
    """The factors by which usual mistakes change an update, with what each mistake is.

    Args:
        scales: Of every adapter that changes the module. Mistakes about alpha and rank are looked for if
            there is one adapter alone.
    """
    found: dict[float, list[str]] = {}
    for factor, cause in _mistakes(scales):
        same = next((known for known in found if math.isclose(known, factor, rel_tol=1e-9)), factor)
        found.setdefault(same, []).append(cause)
    return {factor: causes for factor, causes in found.items() if not math.isclose(factor, 1.0)}


def _mistakes(scales: Sequence[ScaleFacts]) -> Iterator[tuple[float, str]]:
    if len(scales) == 1:
        (one,) = scales
        if one.weight not in (0.0, 1.0):
            yield 1.0 / one.weight, f"the weight {one.weight:g} was ignored"
        if one.scaling > 0:
            root = math.sqrt(one.rank)
            if one.is_rslora:
                yield 1.0 / root, "rsLoRA was ignored: alpha / r instead of alpha / sqrt(r)"
            else:
                yield root, "rsLoRA was assumed: alpha / sqrt(r) instead of alpha / r"
            yield 1.0 / one.scaling, "alpha was ignored: B A was added without its scaling"
            yield one.alpha / one.scaling, "the update was multiplied by alpha without dividing by the rank"
    yield 2.0, "the adapter was applied twice, or alpha was doubled"
    yield 0.5, "half of the update was applied"
    yield -1.0, "the update was subtracted instead of added"


def causes_of(strength: float, error: float, scales: Sequence[ScaleFacts]) -> str:
    """What a strength other than 1 suggests.

    Args:
        strength: As measured.
        error: Its largest error.
        scales: Of every adapter that changes the module.
    """
    known = scale_factors(scales)
    fitting = [
        cause
        for factor, causes in known.items()
        if abs(strength - factor) <= error + _PRINTED * abs(factor)
        for cause in causes
    ]
    if fitting:
        return ", or ".join(fitting)
    if len(scales) == 1 and scales[0].scaling > 0 and strength > 0:
        alpha = scales[0].alpha * strength
        return f"as if lora_alpha were {alpha:.4g} instead of {scales[0].alpha:.4g}"
    return "the update was added at another scale" if strength > 0 else "the update was subtracted"
