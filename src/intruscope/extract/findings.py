"""What the reader of an extraction must know besides its figures."""

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
"""As a scan: the update is at most twice as large as what rounding makes."""


def plan_findings(plan: ExtractRecord, found: Mapping[str, Directions]) -> tuple[Finding, ...]:
    """All findings of a plan whose figures are known.

    Args:
        plan: Without its own findings yet.
        found: Directions by name.
    """
    kept = [f for f in plan.pairing.findings if f.severity != "info" or f.code == "resized"]
    if plan.is_empty:
        message = f"nothing to extract: tuned equals base in every matrix that was chosen ({plan.which})"
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
        "matrices): is this the right base? The difference of unrelated weights is not low-rank"
    )
    return [_warning("wrong-base-suspected", message)]


def _noise(matrices: Sequence[ExtractedMatrix]) -> list[Finding]:
    return [
        _warning(
            "storage-noise",
            f"about {matrix.rounding_fraction:.0%} of the squared update is what rounding the tuned weights "
            "to their dtype makes; it favours no direction, and no low rank can or need keep it",
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
        message = f"the update is stored as factors of rank {own} already, so that nothing is lost"
        findings.append(_info("own-rank", message))
    stored = plan.stored_rank or max(matrix.rank for matrix in used)
    findings += server_rank_findings(stored)
    larger = sum(m.num_parameters > m.shape[0] * m.shape[1] for m in used)
    if larger:
        message = f"{larger} matrices have more numbers in their factors than in themselves at this rank"
        findings.append(_info("larger-than-whole", message))
    spent = plan.allocation
    if spent is not None:
        message = (
            f"{spent.num_parameters:,} of {int(plan.choice.value):,} parameters are spent; no other ranks "
            f"within the budget keep more than {spent.gap:.2g} of the squared update beyond this"
        )
        findings.append(_info("budget", message))
    padding = plan.totals.stored_parameters - plan.totals.num_parameters
    if padding and plan.choice.kind != "rank":
        message = (
            f"{padding:,} zeros fill the factors up to one rank, which every server reads right; --compact "
            "leaves them out"
        )
        findings.append(_info("padding", message))
    return findings


def _rest(plan: ExtractRecord) -> list[Finding]:
    findings = []
    left = [rest for rest in plan.rest if rest.status == "left out"]
    lost = [rest for rest in plan.rest if rest.status == "lost"]
    for entries, code, remedy in (
        (left, "rest-left-out", "--save-rest stores what PEFT can"),
        (lost, "rest-lost", "merge nothing and serve the tuned model where these matter"),
    ):
        if entries:
            names = ", ".join(printable(rest.name) for rest in entries[:_MAX_NAMED])
            more = f" and {len(entries) - _MAX_NAMED} more" if len(entries) > _MAX_NAMED else ""
            verb = "is" if len(entries) == 1 else "are"
            message = f"changed, and {verb} not in the adapter: {names}{more}; {remedy}"
            findings.append(_warning(code, message))
    return findings


def _servers(plan: ExtractRecord) -> list[Finding]:
    findings = []
    if plan.stored_rank is None:
        message = "ranks differ by module (rank_pattern), which some servers drop without a word: vLLM does"
        findings.append(_warning("patterns-and-servers", message))
    if plan.saved.modules or plan.saved.biases:
        message = "modules are saved whole, which PEFT loads and servers such as vLLM refuse"
        findings.append(_warning("saved-and-servers", message))
    if plan.saved.biases:
        message = (
            "biases replace the base's when the adapter is loaded: switching it off does not bring these back"
        )
        findings.append(_info("biases-replaced", message))
    return findings


def _names(plan: ExtractRecord) -> list[Finding]:
    if plan.names.is_known:
        return []
    message = (
        "modules are named as the tuned model stores them, since its class is none of an installed "
        "transformers': check that PEFT finds them"
    )
    return [_warning("names-as-stored", message)]
