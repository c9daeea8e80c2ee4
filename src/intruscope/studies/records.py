"""Results: one record for each piece of work, as Parquet that is small enough to be kept.

A row holds the settings and the figures. What a table has no column for (looks, interventions) is JSON in the
column ``more``, so that the rows read back are the rows that were written. Each row says where it is from
(:mod:`intruscope.studies.origins`), and the file carries a checksum over all of them, so that a table that
was changed by hand is not taken for results. The schema changes whenever a column comes to mean something
else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import MalformedInput
from intruscope.studies.grid import Work, settings_of
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.studies.recipes import RecipePlace

Record = dict[str, Any]
SCHEMA = "intruscope.study.results/2"
FILE = "runs.parquet"
COMMITTED = Path(__file__).parent / "results"
"""Results that are part of the package: a folder for each scale that was run."""
_SETTINGS = ("kind", "base", "task", "method", "rate", "seed", "examples")
NUMBERS = (
    "count",
    "candidates",
    "count_attention",
    "candidates_attention",
    "count_mlp",
    "candidates_mlp",
    "null_count",
    "hosts",
    "predicted_hosts",
    "effective_rank",
    "update_norm",
    "relative_update_norm",
    "matched_change",
    "accuracy",
    "held_out_loss",
    "forgetting",
    "forgetting_low",
    "forgetting_high",
    "rank_change",
    "log_growth",
    "alignment_change",
    "most_at_any_look",
    "lost",
    "count_first",
    "count_last",
    "first_tasks_gain",
    "seconds",
    "core_seconds",
    "train_seconds",
    "measure_seconds",
)
_TEXTS = ("key", "status", "reason", "options", "more")
_ORIGIN = ("inputs", "resolved", "environment")
"""Of where a record is from; JSON, as it is read and compared as a whole."""
_CODE = "code_sha256"
_APART = ("settings", "origin", "taken_from")
_CHECKSUM = b"records_sha256"


def records_of(works: Mapping[str, Work], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Record]:
    """What a journal holds of some work, with the settings."""
    return {
        key: {**found[key], "key": key, "settings": settings_of(work)}
        for key, work in works.items()
        if key in found
    }


def rows_of(places: Sequence[RecipePlace], records: Mapping[str, Record]) -> list[Record]:
    """Rows as the claims' judges take them: one for each arm that has a record.

    Args:
        places: Of one recipe.
        records: By key.
    """
    return [
        {**records[place.work.key], "arm": place.arm, "task": place.task, "seed": place.seed}
        for place in places
        if place.work.key in records
    ]


def write_results(records: Mapping[str, Record], path: Path, *, about: Mapping[str, str]) -> None:
    """Write the table of all records, whole or not at all.

    Args:
        records: By key.
        path: The file. That a record was taken from elsewhere is not kept in it; what made it is.
        about: What the file says of itself: scale, version.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.string()) for name in (*_TEXTS, "kind", "base", "task", "method", *_ORIGIN, _CODE)]
        + [("rate", pa.float64()), ("seed", pa.int64()), ("examples", pa.int64())]
        + [(name, pa.float64()) for name in NUMBERS],
        metadata={"schema": SCHEMA, **about},
    )
    columns = set(schema.names)
    rows = []
    for key in sorted(records):
        record = records[key]
        settings = record["settings"]
        flat = {name: settings[name] for name in _SETTINGS if name in settings}
        flat |= {name: record.get(name) for name in NUMBERS}
        rest = {k: v for k, v in record.items() if k not in columns and k not in _APART}
        rest_of_settings = {k: v for k, v in settings.items() if k not in columns}
        rows.append(
            {
                **flat,
                **_flat_origin(record),
                "key": key,
                "status": record["status"],
                "reason": record.get("reason"),
                "options": json.dumps(settings.get("options", {}), sort_keys=True),
                "more": json.dumps({"settings": rest_of_settings, **rest}, sort_keys=True, allow_nan=False),
            }
        )
    table = pa.Table.from_pylist(rows, schema=schema)
    checksum = {_CHECKSUM: _checksum(table.to_pylist()).encode()}
    table = table.replace_schema_metadata({**schema.metadata, **checksum})

    def write(stream: IO[bytes]) -> None:
        pq.write_table(table, stream, compression="zstd")

    write_atomically(path, write)


def read_results(path: Path) -> tuple[dict[str, Record], dict[str, str]]:
    """The records of a table, and what it says of itself.

    Raises:
        MalformedInput: it is no such table, one of another schema, or one that was changed since.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if about.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {about.get('schema')}")
        rows = table.to_pylist()
        if about.pop(_CHECKSUM.decode(), None) != _checksum(rows):
            raise ValueError("the rows do not match the file's checksum")
        found = {}
        for row in rows:
            more = json.loads(row.pop("more"))
            settings = {name: row[name] for name in _SETTINGS if row[name] is not None}
            settings |= {"options": json.loads(row["options"]), **more.pop("settings")}
            figures = {name: _number(row[name]) for name in NUMBERS if row[name] is not None}
            found[row["key"]] = {
                **figures,
                **more,
                **_origin(row),
                "key": row["key"],
                "status": row["status"],
                "reason": row["reason"],
                "settings": settings,
            }
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise MalformedInput(
            f"this is not a table of results in the format {SCHEMA} ({error})",
            remedy="write it again with intruscope study report",
            file=path,
        ) from None
    return found, about


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _flat_origin(record: Mapping[str, Any]) -> dict[str, str]:
    origin = record.get("origin")
    if origin is None:
        return {}
    return {_CODE: origin[_CODE], **{name: json.dumps(origin[name], sort_keys=True) for name in _ORIGIN}}


def _origin(row: Mapping[str, Any]) -> dict[str, Any]:
    if row[_CODE] is None:
        return {}
    return {"origin": {_CODE: row[_CODE], **{name: json.loads(row[name]) for name in _ORIGIN}}}


def _checksum(rows: Sequence[Mapping[str, Any]]) -> str:
    """Over the rows as Parquet holds them, in their order."""
    state = hashlib.sha256()
    for row in rows:
        state.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return state.hexdigest()
