"""A scan as JSON and back: the public schema ``intruscope.scan/1``.

Every field of the records is there. What the schema promises at the top level of a matrix
(``alignment_lower``, ``verdicts`` and so on) repeats its first side, so that a reader who does not
care for sides need not know of them.
"""

from __future__ import annotations

import base64
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, printable
from intruscope.spectra.codec import matrix_report_from_dict
from intruscope.spectra.records import SCHEMA, MatrixReport, ScanReport, ScanSettings
from intruscope.weights.matrices import CoverageEntry, Finding
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FIRST_SIDE = (
    "alignment_lower",
    "alignment_upper",
    "verdicts",
    "certificates",
)
_REMEDY = "write the file again with intruscope scan --json"


def to_json(report: ScanReport) -> dict[str, Any]:
    """Lay a report out as plain dicts, lists, strings, numbers, booleans and None.

    Args:
        report: The scan.

    Returns:
        The schema's object; ``json.loads`` of its ``json.dumps`` equals it.
    """
    return {
        "schema": SCHEMA,
        "base": report.base,
        "tuned": report.tuned,
        "complete": report.complete,
        "settings": plain(report.settings),
        "totals": totals(report),
        "findings": plain(report.findings),
        "matrices": [_matrix(matrix) for matrix in report.matrices],
        "coverage": plain(report.coverage),
        "environment": plain(report.environment),
    }


def totals(report: ScanReport) -> dict[str, Any]:
    """Count matrices, intruders and undecided vectors of the paper's scope, and apart of the rest.

    The first side counts, as at the top level of each matrix.
    """
    return {
        **_counts(matrix for matrix in report.matrices if matrix.scope == "paper"),
        "other": _counts(matrix for matrix in report.matrices if matrix.scope == "other"),
    }


def from_json(data: dict[str, Any]) -> ScanReport:
    """Rebuild a report; the exact inverse of :func:`to_json`.

    Args:
        data: What ``json.loads`` gave.

    Raises:
        MalformedInput: another schema, or fields that are missing, unknown or of the wrong shape.
    """
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        shown = "no schema" if schema is None else f"the schema {printable(schema)}"
        raise MalformedInput(f"got {shown}, expected {SCHEMA}", remedy=_REMEDY)
    try:
        return ScanReport(
            base=data["base"],
            tuned=data["tuned"],
            settings=ScanSettings(**data["settings"]),
            matrices=tuple(
                matrix_report_from_dict({name: matrix[name] for name in _MATRIX_FIELDS})
                for matrix in data["matrices"]
            ),
            coverage=tuple(
                CoverageEntry(**{**entry, "matrices": tuple(entry["matrices"])}) for entry in data["coverage"]
            ),
            findings=tuple(Finding(**finding) for finding in data["findings"]),
            complete=data["complete"],
            environment=data["environment"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        fact = f"got a report that does not fit its schema ({printable(error)}), expected {SCHEMA}"
        raise MalformedInput(fact, remedy=_REMEDY) from error


def write_json(report: ScanReport, path: Path) -> None:
    """Write the report, whole or not at all: indented ASCII, so that names survive any terminal.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
        ValueError: a field is NaN or infinite, which the records forbid.
    """
    write_json_file(to_json(report), path)


_MATRIX_FIELDS = tuple(field.name for field in fields(MatrixReport))


def _matrix(matrix: MatrixReport) -> dict[str, Any]:
    side = matrix.sides[0] if matrix.sides else None
    laid_out = plain(matrix)
    for each in laid_out["sides"]:
        if each["similarity"] is not None:
            # Thousands of levels a map: one string, not one line each.
            levels = bytes(each["similarity"]["levels"])
            each["similarity"]["levels"] = base64.b64encode(levels).decode("ascii")
    return {
        **laid_out,
        **{name: [] if side is None else list(getattr(side, name)) for name in _FIRST_SIDE},
        "num_intruders": 0 if side is None else side.num_intruders,
    }


def _counts(matrices: Iterable[MatrixReport]) -> dict[str, int]:
    num_matrices = num_intruders = num_undecided = 0
    for matrix in matrices:
        num_matrices += 1
        for side in matrix.sides[:1]:
            num_intruders += side.num_intruders
            num_undecided += sum(verdict in ("borderline", "degenerate") for verdict in side.verdicts)
    return {"num_matrices": num_matrices, "num_intruders": num_intruders, "num_undecided": num_undecided}


def plain(value: Any) -> Any:
    """Lay records out as dicts and tuples as lists, without the deep copies of ``dataclasses.asdict``."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
