"""Findings about a model as a whole, from the reports of its matrices."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from intruscope.spectra.records import MatrixReport, Status
from intruscope.weights.matrices import Finding, MatrixPair

if TYPE_CHECKING:
    from collections.abc import Sequence

WRONG_BASE_THRESHOLD = 1.0
"""Median ‖ΔW‖_F / ‖W_base‖_F over the matrices of a full checkpoint above which the base is suspected to be
the wrong one.

Uncorrelated weights give √(1 + ρ²), ρ the ratio of their norms: never less than one, √2 for equal norms.
Measured by ``benchmarks/wrong_base.py``: 20 of 20 unrelated bases noticed, with medians of 1.43 to 1.55
between three seeds of one configuration and 1.05 for an untrained MiniLM, whose norms are small; 0 of 8
false alarms, with medians of 0.18 for a MiniLM trained on for 4,000 steps at 3e-4 (its embedding alone
moved by 1.15) and at most 0.62, for a merged LoRA at a high rate. Another model trained from the same
ancestor is as close as a fine-tune and is not noticed (0 of 1).

The size of an adapter's update does not identify its base (there the chance of ranking a right one above a
wrong one is 0.43). Its place does: the share of ‖ΔW‖² in the base's 8 leading left directions, over what
chance gives, has a median of 1.25 to 5.85 on the adapter's own base (10 cases of LoRA) and of 0.72 to 1.24
on another (28 cases). The gap is too narrow, and two architectures too few, for a threshold, so no
finding is drawn from it.
"""


def model_findings(matrices: Sequence[MatrixReport]) -> tuple[Finding, ...]:
    """Findings that need all matrices: nothing changed, nothing trained, another base."""
    done = [matrix for matrix in matrices if matrix.status == "done" and matrix.update is not None]
    found = []
    for code, message in (
        ("never-trained", "the adapter changes nothing: all its updates are zero. Was it ever trained?"),
        ("unchanged", "base and tuned model are equal in every matrix that was compared"),
    ):
        if done and all(any(finding.code == code for finding in matrix.findings) for matrix in done):
            found.append(Finding(code=f"model-{code}", severity="warning", message=message))
    sizes = [
        matrix.update.relative_frobenius_norm
        for matrix in done
        if matrix.update is not None and matrix.update.relative_frobenius_norm is not None
    ]
    full = any(m.update is not None and m.update.rank_bound == min(m.shape) for m in done)
    if full and sizes and statistics.median(sizes) > WRONG_BASE_THRESHOLD:
        message = (
            f"the update is {statistics.median(sizes):.2f} times as large as the base (median). "
            f"Fine-tunes stay below {WRONG_BASE_THRESHOLD:g}; unrelated weights give about 1.41. "
            "Is this the right base?"
        )
        found.append(Finding(code="wrong-base-suspected", severity="warning", message=message))
    return tuple(found)


def without_figures(pair: MatrixPair, status: Status, finding: Finding) -> MatrixReport:
    """A report without figures: the matrix was refused, unfinished or failed, or has nothing to decompose."""
    return MatrixReport(
        name=pair.name,
        shape=pair.base.shape,
        kind=pair.kind,
        layer=pair.layer,
        scope=pair.scope,
        status=status,
        singular_values=(),
        residual_ratio=None,
        top_k_failure_probability=None,
        sides=(),
        update=None,
        base_frobenius_norm=None,
        base_spectral_norm=None,
        findings=(finding,),
    )
