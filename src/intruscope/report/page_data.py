"""What the page draws, as compact plain data; every foreign name is escaped here, once."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intruscope.errors import printable_text
from intruscope.plots.series import curves
from intruscope.spectra.kinds import KINDS
from intruscope.spectra.words import count, percent, rank_range, sentence, top_energy, update_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.spectra.records import MatrixReport, ScanReport, SideReport, SimilarityMap
    from intruscope.weights.matrices import CoverageEntry, Finding

MAX_VECTORS = 200
"""Tuned vectors per matrix that the page draws; the JSON report has all of them."""
MAX_MAP_BYTES = 16 << 20
"""Bytes of similarity maps that one page carries."""


_CERTIFICATE = {"proved": "p", "probabilistic": "b", "dense": "d"}


def page_data(reports: Sequence[tuple[str, ScanReport]]) -> dict[str, Any]:
    """Gather the data of a page.

    Args:
        reports: Label and scan.

    Returns:
        Plain data without NaN; texts hold no control or bidirectional characters.
    """
    room = [MAX_MAP_BYTES]
    return {
        "kinds": list(KINDS),
        "maxVectors": MAX_VECTORS,
        "reports": [_report(label, report, room) for label, report in reports],
    }


def _report(label: str, report: ScanReport, room: list[int]) -> dict[str, Any]:
    totals = report.totals
    chance = totals.chance
    return {
        "label": printable_text(label),
        "sentence": sentence(report),
        "base": printable_text(report.base),
        "tuned": printable_text(report.tuned),
        "complete": report.complete,
        "epsilon": report.settings.epsilon,
        "headline": {
            "intruders": totals.num_intruders,
            "candidates": totals.num_vectors,
            "touched": totals.matrices_with_intruders,
            "matrices": totals.num_measured,
            "chance": None if chance is None else count(chance.expected),
        },
        "figures": _figures(report),
        "findings": [_finding(finding) for finding in report.findings],
        "matrices": [_matrix(matrix, room) for matrix in report.matrices],
        "curves": [
            [k, [[p.epsilon, p.num_intruders, p.num_undecided, p.num_candidates] for p in points]]
            for k, points in curves(report).items()
        ],
        "null": None if chance is None else [chance.expected, chance.low, chance.high, totals.num_vectors],
        "coverage": _coverage(report.coverage),
        "settings": [[name, _written(value)] for name, value in asdict(report.settings).items()],
        "environment": [
            [printable_text(str(name)), printable_text(str(value))]
            for name, value in report.environment.items()
        ],
    }


def _written(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _figures(report: ScanReport) -> list[list[str]]:
    """Name and value of what stands under the headline count."""
    totals = report.totals
    chance = totals.chance
    lines = (
        (
            "By chance",
            None
            if chance is None
            else f"{count(chance.expected)} ({count(chance.low)} to {count(chance.high)})",
        ),
        ("Size of ΔW", update_size(totals.relative_update_norm, totals.relative_update_norms)),
        ("Effective rank of ΔW", rank_range(totals.effective_ranks)),
        (
            f"ΔW in the base’s top {report.settings.k} directions",
            top_energy(totals.top_energy_fraction, totals.top_energy_chance),
        ),
        ("Largest energy share in W", _share(totals.max_tuned_energy_fraction)),
        ("Largest energy share in ΔW", _share(totals.max_update_energy_fraction)),
        ("Undecided", str(totals.num_undecided)),
        ("Certificates", ", ".join(f"{number} {name}" for name, number in totals.certificates.items())),
    )
    return [[name, value] for name, value in lines if value is not None]


def _share(fraction: float | None) -> str | None:
    return None if fraction is None else percent(fraction)


def _finding(finding: Finding) -> list[str | None]:
    place = None if finding.matrix is None else printable_text(finding.matrix)
    return [finding.severity, printable_text(finding.code), printable_text(finding.message), place]


def _matrix(matrix: MatrixReport, room: list[int]) -> dict[str, Any]:
    update = matrix.update
    rank = None if update is None else update.effective_rank
    return {
        "name": printable_text(matrix.name),
        "kind": printable_text(matrix.kind),
        "layer": matrix.layer,
        "scope": matrix.scope,
        "shape": list(matrix.shape),
        "status": matrix.status,
        "failure": matrix.top_k_failure_probability,
        "values": [short(value) for value in matrix.singular_values[:MAX_VECTORS]],
        "rank": None
        if rank is None
        else [*(short(x) for x in (rank.value, rank.low, rank.high)), printable_text(rank.method)],
        "norm": None
        if update is None or update.relative_frobenius_norm is None
        else short(update.relative_frobenius_norm),
        "sides": [_side(side, room) for side in matrix.sides],
        "findings": [_finding(finding) for finding in matrix.findings],
    }


def _side(side: SideReport, room: list[int]) -> dict[str, Any]:
    null = side.null or side.chance
    return {
        "side": side.side,
        "num": len(side.verdicts),
        "intruders": side.num_intruders,
        "undecided": sum(verdict in ("borderline", "degenerate") for verdict in side.verdicts),
        "lowest": short(min(side.alignment_lower)) if side.alignment_lower else None,
        "lower": [short(value) for value in side.alignment_lower[:MAX_VECTORS]],
        "upper": [short(value) for value in side.alignment_upper[:MAX_VECTORS]],
        "verdicts": "".join(verdict[0] for verdict in side.verdicts[:MAX_VECTORS]),
        "certificates": "".join(_CERTIFICATE[c] for c in side.certificates[:MAX_VECTORS]),
        "failure": side.alignment_failure_probability,
        "matches": [
            None if match is None else [match.base_index + 1, short(match.relative_change)]
            for match in side.matches[:MAX_VECTORS]
        ],
        "outside": None
        if side.outside_column_space is None
        else [short(value) for value in side.outside_column_space[:MAX_VECTORS]],
        "energy": side.tuned_energy_fraction,
        "updateEnergy": side.update_energy_fraction,
        "null": None if null is None else [null.mean, null.low, null.high],
        "map": _map(side.similarity, room),
    }


def _map(similarity: SimilarityMap | None, room: list[int]) -> dict[str, Any] | str | None:
    """The map as base64 bytes, or a word that the page has no room for it."""
    if similarity is None:
        return None
    if len(similarity.levels) > room[0]:
        return "omitted"
    room[0] -= len(similarity.levels)
    levels = base64.b64encode(bytes(similarity.levels)).decode("ascii")
    return {"rows": similarity.num_base, "columns": similarity.num_tuned, "levels": levels}


def _coverage(ledger: Sequence[CoverageEntry]) -> dict[str, Any]:
    """The ledger with its few reasons said once; a line is tensor, origin, status, number of reason.

    Skipped tensors that should have been compared are ``missed``, heads of one side ``head``.
    """
    reasons: dict[str, int] = {}
    lines = [
        [
            printable_text(entry.tensor),
            entry.origin,
            "missed" if entry.gap else "head" if entry.head else entry.status,
            reasons.setdefault(printable_text(entry.reason), len(reasons)),
        ]
        for entry in ledger
    ]
    return {"reasons": list(reasons), "lines": lines}


def short(value: float) -> float:
    """Six significant digits: more than a screen shows, a third of the bytes."""
    return float(f"{value:.6g}")
