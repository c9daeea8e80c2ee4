"""Findings of an extraction: what its figures alone do not say."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from intruscope.errors import printable
from intruscope.spectra.findings import WRONG_BASE_THRESHOLD
from intruscope.weights.matrices import Finding
from intruscope.writing.lora import server_rank_findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.extract.decompose import Directions
    from intruscope.extract.records import ExtractedMatrix, ExtractRecord

_MAX_NAMED = 3
_NOISE_FRACTION = 0.25
"""The threshold of a scan: the update is at most twice as large as the rounding noise."""


def plan_findings(plan: ExtractRecord, found: Mapping[str, Directions]) -> tuple[Finding, ...]:
    """All findings of a plan whose figures are known.

    Args:
        plan: Without its own findings yet.
        found: Directions by name.
    """
    kept = [f for f in plan.pairing.findings if f.severity != "info" or f.code == "resized"]
    if plan.is_empty:
        message = f"nothing to extract: no selected matrix ({plan.which}) differs from the base"
        return (*kept, Finding(code="nothing-to-extract", severity="info", message=message), *_rest(plan))
    return (
        *kept,
        *_wrong_base(plan, found),
        *_noise(plan.matrices),
        *_rank(plan),
        *_rest(plan),
        *_servers(plan),
        *_names(plan),
    )


def _info(code: str, message: str) -> Finding:
    return Finding(code=code, severity="info", message=message)


def _warning(code: str, message: str, matrix: str | None = None) -> Finding:
    return Finding(code=code, severity="warning", message=message, matrix=matrix)


def _wrong_base(plan: ExtractRecord, found: Mapping[str, Directions]) -> list[Finding]:
    full = [m for m in plan.matrices if m.rank_bound == min(m.shape) and found[m.name].base_norm > 0.0]
    sizes = [matrix.update_norm / found[matrix.name].base_norm for matrix in full]
    if not sizes or statistics.median(sizes) <= WRONG_BASE_THRESHOLD:
        return []
    message = (
        f"the update is {statistics.median(sizes):.2f} times as large as the base itself (median over "
        "matrices). Is this the right base? The difference between unrelated models is not low-rank"
    )
    return [_warning("wrong-base-suspected", message)]


def _noise(matrices: Sequence[ExtractedMatrix]) -> list[Finding]:
    return [
        _warning(
            "storage-noise",
            f"about {matrix.rounding_fraction:.0%} of the squared update is rounding noise from storing the "
            "tuned weights in their dtype; no low rank can keep it, and none needs to",
            matrix.name,
        )
        for matrix in matrices
        if matrix.rounding_fraction is not None and matrix.rounding_fraction >= _NOISE_FRACTION
    ]


def _rank(plan: ExtractRecord) -> list[Finding]:
    findings = []
    used = [matrix for matrix in plan.matrices if matrix.rank]
    own = max(matrix.rank_bound for matrix in plan.matrices)
    if all(m.rank == m.rank_bound < min(m.shape) for m in plan.matrices):
        message = f"the update is already low-rank (rank {own}), so nothing is lost"
        findings.append(_info("own-rank", message))
    stored = plan.stored_rank or max(matrix.rank for matrix in used)
    findings += server_rank_findings(stored)
    larger = sum(m.num_parameters > m.shape[0] * m.shape[1] for m in used)
    if larger:
        message = f"at this rank, the factors of {larger} matrices are larger than the matrices themselves"
        findings.append(_info("larger-than-whole", message))
    spent = plan.allocation
    if spent is not None:
        message = (
            f"{spent.num_parameters:,} of {int(plan.choice.value):,} parameters are used; the best possible "
            f"ranks for this budget keep at most {spent.gap:.2g} more of the squared update"
        )
        findings.append(_info("budget", message))
    padding = plan.totals.stored_parameters - plan.totals.num_parameters
    if padding and plan.choice.kind != "rank":
        message = (
            f"the factors are padded with {padding:,} zeros to one common rank, which every server supports; "
            "--compact omits them"
        )
        findings.append(_info("padding", message))
    return findings


def _rest(plan: ExtractRecord) -> list[Finding]:
    findings = []
    left = [rest for rest in plan.rest if rest.status == "left out"]
    lost = [rest for rest in plan.rest if rest.status == "lost"]
    for entries, code, remedy in (
        (left, "rest-left-out", "--save-rest stores those that PEFT can hold"),
        (lost, "rest-lost", "PEFT cannot store them; where they matter, use the tuned model itself"),
    ):
        if entries:
            names = ", ".join(printable(rest.name) for rest in entries[:_MAX_NAMED])
            more = f" and {len(entries) - _MAX_NAMED} more" if len(entries) > _MAX_NAMED else ""
            message = f"these changed but are not in the adapter: {names}{more}; {remedy}"
            findings.append(_warning(code, message))
    return findings


def _servers(plan: ExtractRecord) -> list[Finding]:
    findings = []
    if plan.stored_rank is None:
        message = "ranks differ by module (rank_pattern), which vLLM and other servers silently ignore"
        findings.append(_warning("patterns-and-servers", message))
    if plan.saved.modules or plan.saved.biases:
        message = "some modules are saved whole; PEFT loads them, but servers such as vLLM refuse them"
        findings.append(_warning("saved-and-servers", message))
    if plan.saved.biases:
        message = "loading the adapter overwrites the base's biases, and disabling it does not restore them"
        findings.append(_info("biases-replaced", message))
    return findings


def _names(plan: ExtractRecord) -> list[Finding]:
    if plan.names.is_known:
        return []
    message = (
        "modules have the names used in the tuned model's files, because its class is not in an installed "
        "transformers; check that PEFT finds them"
    )
    return [_warning("names-as-stored", message)]
