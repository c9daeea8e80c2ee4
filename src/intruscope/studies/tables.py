"""A study as plain tables: what a query sees of its runs, looks, interventions and verdicts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intruscope.studies.judge import judge, places_with
from intruscope.studies.records import NUMBERS
from intruscope.studies.weights import EPSILON, K

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from intruscope.studies.judge import Judged
    from intruscope.studies.records import Record

Row = dict[str, Any]
_TEXT, _NUMBER, _WHOLE = "string", "double", "int64"
COLUMNS: dict[str, dict[str, str]] = {
    "runs": {
        **dict.fromkeys(("key", "status", "reason", "kind", "base", "task", "method"), _TEXT),
        "rank": _WHOLE,
        "alpha": _NUMBER,
        "options": _TEXT,
        "rate": _NUMBER,
        **dict.fromkeys(("seed", "examples", "epochs", "batch", "max_length"), _WHOLE),
        **dict.fromkeys(NUMBERS, _NUMBER),
        **dict.fromkeys(("code_sha256", "environment", "taken_from"), _TEXT),
    },
    "counts": {"key": _TEXT, "epsilon": _NUMBER, "k": _WHOLE, "count": _NUMBER},
    "looks": {
        "key": _TEXT,
        **dict.fromkeys(("step", "count", "forgetting", "held_out_loss"), _NUMBER),
    },
    "interventions": {
        "key": _TEXT,
        "control": _TEXT,
        "strength": _NUMBER,
        **dict.fromkeys(
            ("forgetting_change", "forgetting_share", "accuracy_change", "loss_change", "change_norm"),
            _NUMBER,
        ),
    },
    "arms": {"recipe": _TEXT, "arm": _TEXT, "task": _TEXT, "seed": _WHOLE, "key": _TEXT},
    "verdicts": {
        **dict.fromkeys(("claim", "text", "paper_version", "recipe", "verdict", "reason"), _TEXT),
        **dict.fromkeys(("num_runs", "num_left_out", "num_planned", "num_seeds"), _WHOLE),
    },
    "statements": {
        **dict.fromkeys(("claim", "statement", "finding"), _TEXT),
        **dict.fromkeys(("estimate", "low", "high", "level", "above", "below"), _NUMBER),
        "is_aside": "bool",
    },
}
"""The tables by name, and the columns of each with their types (of Arrow). ``key`` joins them to ``runs``."""


def study_tables(scale_name: str, records: Mapping[str, Record]) -> dict[str, pa.Table]:
    """The tables of :data:`COLUMNS`, also where they are empty.

    Args:
        scale_name: Of the study.
        records: By key.
    """
    import pyarrow as pa

    judged = judge(scale_name, records)
    rows: dict[str, Sequence[Row]] = {
        "runs": [_run(record) for record in records.values()],
        "counts": [row for record in records.values() for row in _counts(record)],
        "looks": [{"key": r["key"], **look} for r in records.values() for look in r.get("looks") or ()],
        "interventions": [row for record in records.values() for row in _interventions(record)],
        "arms": [
            {"recipe": p.recipe, "arm": p.arm, "task": p.task, "seed": p.seed, "key": p.work.key}
            for p in places_with(scale_name, records)
        ],
        "verdicts": [_verdict(each) for each in judged],
        "statements": [row for each in judged for row in _statements(each)],
    }
    return {
        name: pa.Table.from_pylist(
            rows[name], schema=pa.schema([(column, kind) for column, kind in columns.items()])
        )
        for name, columns in COLUMNS.items()
    }


def _run(record: Record) -> Row:
    settings, origin = record["settings"], record.get("origin", {})
    options = settings.get("options", {})
    return {
        **settings,
        **{name: record.get(name) for name in NUMBERS},
        "key": record["key"],
        "status": record["status"],
        "reason": record.get("reason"),
        "task": settings["task"] if "task" in settings else "-".join(settings["tasks"]),
        "rank": int(options["rank"]) if "rank" in options else None,
        "alpha": options.get("alpha"),
        "options": json.dumps(options, sort_keys=True),
        "code_sha256": origin.get("code_sha256"),
        "environment": json.dumps(origin["environment"], sort_keys=True) if origin else None,
        "taken_from": record.get("taken_from"),
    }


def _counts(record: Record) -> Iterator[Row]:
    """Every count of the sweep by epsilon at k = 10, and by k at epsilon .5, the common one once."""
    for epsilon, count in record.get("counts", {}).items():
        yield {"key": record["key"], "epsilon": float(epsilon), "k": K, "count": count}
    for k, count in record.get("counts_by_k", {}).items():
        if int(k) != K:
            yield {"key": record["key"], "epsilon": EPSILON, "k": int(k), "count": count}


def _interventions(record: Record) -> Iterator[Row]:
    for control, cells in record.get("interventions", {}).items():
        for strength, cell in cells.items():
            yield {"key": record["key"], "control": control, "strength": float(strength), **cell}


def _verdict(each: Judged) -> Row:
    return {
        "claim": each.claim.id,
        "text": each.claim.text,
        "paper_version": each.claim.paper_version,
        "recipe": each.claim.recipe,
        "verdict": None if each.verdict is None else each.verdict.outcome,
        "reason": each.reason,
        "num_runs": each.num_runs,
        "num_left_out": each.num_left_out,
        "num_planned": each.num_planned,
        "num_seeds": len(each.seeds),
    }


def _statements(each: Judged) -> Iterator[Row]:
    for statement in () if each.verdict is None else each.verdict.statements:
        found = statement.estimate
        yield {
            "claim": each.claim.id,
            "statement": statement.text,
            "finding": statement.finding,
            "estimate": None if found is None else found.estimate,
            "low": None if found is None else found.low,
            "high": None if found is None else found.high,
            "level": None if found is None else found.level,
            "above": statement.above,
            "below": statement.below,
            "is_aside": statement.is_aside,
        }
