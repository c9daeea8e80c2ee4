"""What the weights of a run say: every count that a claim asks for, with null and prediction beside it."""

from __future__ import annotations

import functools
import math
import statistics
from typing import TYPE_CHECKING, Any

from intruscope.engine.settings import RunOptions
from intruscope.spectra.records import ScanSettings
from intruscope.spectra.scan import plan, scan
from intruscope.studies.prediction import threshold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intruscope.spectra.records import MatrixReport, ScanReport

K = 10
"""Candidates of a matrix (arXiv 2410.21228, section 3)."""
EPSILON = 0.5
EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The sweep of the paper's figure 4."""
KS = (1, 2, 5, 10, 20, 50, 100)
NUM_FIFTHS = 5
_ATTENTION = frozenset({"q", "k", "v", "kv", "qkv", "o"})


def weight_figures(base: str, tuned: str, *, work: Path, is_large: bool = False) -> dict[str, Any]:
    """Counts, parts, ranks and norms of one fine-tune.

    Args:
        base: Model before.
        tuned: Model after, or adapter.
        work: Folder of the scans' journals.
        is_large: Look at the leading vectors only: no fifths, no null.

    Returns:
        The columns that :mod:`intruscope.studies.claims_weights` names, and ``null_count`` (intruders that
        the same update spectrum makes in random directions), ``hosts`` and ``predicted_hosts`` (matrices with
        an intruder, and those whose update exceeds :func:`intruscope.studies.prediction.threshold`),
        ``update_norm`` (Frobenius, over all matrices), ``relative_update_norm``, ``matched_change`` (median
        relative change of a singular value that has a counterpart in the base).

    Raises:
        IntruscopeError: a file is damaged.
    """
    work.mkdir(exist_ok=True)
    whole = _scanned(base, tuned, ScanSettings(k=K if is_large else "all"), work / "whole")
    matrices = whole.measured
    found = {**_counts(matrices), **_update(matrices)}
    if is_large:
        return found
    null = _scanned(base, tuned, ScanSettings(k=K, null_trials=1, chance_trials=0), work / "null").measured
    limits = thresholds(base)
    return {
        **found,
        "by_fifth": _by_fifth(matrices),
        "counts_by_k": {str(k): sum(_below(m, EPSILON, k) for m in matrices) for k in KS},
        "null_count": sum(m.sides[0].null.mean for m in null if m.sides[0].null is not None),
        "predicted_hosts": sum(
            m.update is not None
            and limits.get(m.name) is not None
            and m.update.spectral_norm > limits[m.name]  # type: ignore[operator]
            for m in matrices
        ),
    }


def _scanned(base: str, tuned: str, settings: ScanSettings, work: Path) -> ScanReport:
    return scan(base, tuned, settings=settings, options=RunOptions(workers=0, work_dir=work))


def _below(matrix: MatrixReport, epsilon: float, k: int) -> int:
    """Intruders among the k leading vectors; one whose bounds enclose epsilon is none."""
    return sum(upper < epsilon for upper in matrix.sides[0].alignment_upper[:k])


def _counts(matrices: Sequence[MatrixReport]) -> dict[str, Any]:
    parts = {
        "": matrices,
        "_attention": [m for m in matrices if m.kind in _ATTENTION],
        "_mlp": [m for m in matrices if m.kind not in _ATTENTION],
    }
    found: dict[str, Any] = {}
    for part, own in parts.items():
        found[f"count{part}"] = sum(_below(m, EPSILON, K) for m in own)
        found[f"candidates{part}"] = sum(min(K, len(m.sides[0].alignment_upper)) for m in own)
    return {
        **found,
        "counts": {f"{epsilon:g}": sum(_below(m, epsilon, K) for m in matrices) for epsilon in EPSILONS},
        "hosts": sum(_below(m, EPSILON, K) > 0 for m in matrices),
    }


def _by_fifth(matrices: Sequence[MatrixReport]) -> list[int]:
    """Intruders among all vectors, by the fifth of its matrix's ranks that a vector lies in."""
    found = [0] * NUM_FIFTHS
    for matrix in matrices:
        uppers = matrix.sides[0].alignment_upper
        for place, upper in enumerate(uppers):
            found[place * NUM_FIFTHS // len(uppers)] += upper < EPSILON
    return found


def _update(matrices: Sequence[MatrixReport]) -> dict[str, Any]:
    changed = [m.update for m in matrices if m.update is not None]
    ranks = [update.effective_rank.value for update in changed if update.effective_rank is not None]
    norm = math.sqrt(sum(update.frobenius_norm**2 for update in changed))
    base = math.sqrt(sum((m.base_frobenius_norm or 0.0) ** 2 for m in matrices))
    changes = [
        abs(match.relative_change) for m in matrices for match in m.sides[0].matches[:K] if match is not None
    ]
    return {
        "effective_rank": statistics.fmean(ranks) if ranks else None,
        "update_norm": norm,
        "relative_update_norm": norm / base if base else None,
        "matched_change": statistics.median(changes) if changes else None,
    }


@functools.lru_cache(maxsize=2)
def thresholds(base: str) -> dict[str, float | None]:
    """For every matrix of a base the size from which a random update is among its leading vectors."""
    import torch

    found = {}
    for pair in plan(base, base).pairs:
        if pair.scope == "paper":
            values = torch.linalg.svdvals(pair.base.load().double())
            found[pair.name] = threshold(values.numpy(), pair.base.shape, K)
    return found
