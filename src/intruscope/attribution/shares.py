"""From the table of a path integral to shares with intervals.

Shape suffixes: C columns, G groups, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from intruscope.forgetting.intervals import Interval, percentile_interval, resampled_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from intruscope.attribution.path import PathIntegral


@dataclass(frozen=True, kw_only=True, eq=False)
class Shares:
    """Shares of one total, and bootstrap samples of them.

    Attributes:
        integral: Where they are from.
        total_G: Sum of all parts in each group.
        num_resamples: Number of bootstrap resamples.
        seed: Random seed. Two totals over different sequences need different seeds.
    """

    integral: PathIntegral
    total_G: NDArray[np.float64]
    num_resamples: int
    seed: int

    def of(self, column_G: NDArray[np.float64]) -> float | None:
        """The share of one part; None where the total is zero."""
        total = self.total_G.sum()
        return float(column_G.sum() / total) if total else None

    def samples(self, columns_CG: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Shares of some parts in each resample, (R, C); None for a zero total or a single group."""
        if len(self.total_G) < 2 or not self.total_G.any():
            return None
        sums = resampled_sums(
            np.vstack([columns_CG, self.total_G]), num_resamples=self.num_resamples, seed=self.seed
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found: NDArray[np.float64] = sums[:, :-1] / sums[:, -1:]
        return found if np.isfinite(found).all() else None

    def total(self) -> Interval | None:
        """The total in nats per unit, with its interval; None where there is one group."""
        if len(self.total_G) < 2:
            return None
        units = self.integral.units_G
        sums = resampled_sums(
            np.vstack([self.total_G, units]), num_resamples=self.num_resamples, seed=self.seed
        )
        return percentile_interval(sums[:, 0] / sums[:, 1], self.total_G.sum() / units.sum())


@dataclass(frozen=True, kw_only=True)
class ShareFigures:
    """Shares of forgetting and gain of one part, with their intervals and their ratio."""

    forgetting_share: float | None
    forgetting_interval: Interval | None
    gain_share: float | None
    gain_interval: Interval | None
    ratio: Interval | None


def share_figures(
    forgetting: Shares,
    gain: Shares | None,
    columns: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> list[ShareFigures]:
    """Figures of several parts.

    Texts and examples are resampled independently of each other, each by groups of whole sequences.

    Args:
        forgetting: Shares of forgetting.
        gain: Shares of the gain on a task; None without one.
        columns: Nats of each part in each group of the text, and in each group of the task (empty without a
            task).
    """
    if not columns:
        return []
    texts = np.stack([text for text, _ in columns])
    tasks = np.stack([task for _, task in columns])
    text_samples = forgetting.samples(texts)
    task_samples = None if gain is None else gain.samples(tasks)
    found = []
    for index, (text_G, task_G) in enumerate(columns):
        forgotten = forgetting.of(text_G)
        gained = None if gain is None else gain.of(task_G)
        text_R = None if text_samples is None else text_samples[:, index]
        task_R = None if task_samples is None else task_samples[:, index]
        gain_interval = _interval(task_R, gained)
        ratio = None
        if text_R is not None and task_R is not None and forgotten is not None and gain_interval is not None:
            bounds = (gain_interval.low, gain_interval.high)
            if gained and min(bounds) * max(bounds) > 0.0 and task_R.all():
                ratio = percentile_interval(text_R / task_R, forgotten / gained)
        found.append(
            ShareFigures(
                forgetting_share=forgotten,
                forgetting_interval=_interval(text_R, forgotten),
                gain_share=gained,
                gain_interval=gain_interval,
                ratio=ratio,
            )
        )
    return found


def _interval(samples_R: NDArray[np.float64] | None, estimate: float | None) -> Interval | None:
    return None if samples_R is None or estimate is None else percentile_interval(samples_R, estimate)
