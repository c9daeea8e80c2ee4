"""Finished runs from elsewhere: a table of results or another study's folder, taken where nothing differs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.studies.folder import is_study, study_records
from intruscope.studies.grid import settings_of
from intruscope.studies.origins import difference, inputs_read
from intruscope.studies.records import COMMITTED, FILE, read_results

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intruscope.studies.grid import Work
    from intruscope.studies.records import Record
    from intruscope.studies.scale import Scale

SHIPPED = "shipped"
"""Names the results that are part of the package."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Records from one place.

    Attributes:
        name: As it was asked for.
        records: By key.
    """

    name: str
    records: Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What of a study is known from elsewhere.

    Attributes:
        records: By key, each with ``taken_from``.
        refused: How many records with a right key are another run all the same, by place and difference.
    """

    records: Mapping[str, Record]
    refused: Mapping[tuple[str, str], int]


def read_known(name: str, scale: Scale) -> Known:
    """The records of one place.

    Args:
        name: A table of results, a folder that holds one, the folder of a study (also one that is running),
            or ``shipped``.
        scale: That they must be of.

    Raises:
        UsageError: nothing is there, or results of another scale.
        MalformedInput: a table that is damaged, was changed by hand, or has another schema.
        OutputConflict: the folder of a study of another version.
    """
    path = COMMITTED / scale.name / FILE if name == SHIPPED else Path(name)
    if is_study(path):
        found, records = study_records(path)
    else:
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UsageError(
                _absent(name, scale), remedy="pass a runs.parquet, or the --out folder of a study"
            )
        records, about = read_results(path)
        found = about["scale"]
    if found != scale.name:
        raise UsageError(
            f"these are results of the scale {printable(found)}, not of {scale.name}",
            remedy="use results of the same scale, or change --scale",
            file=path,
        )
    return Known(name=name, records=records)


def _absent(name: str, scale: Scale) -> str:
    if name == SHIPPED:
        return f"no results of the scale {scale.name} ship with this version"
    return f"{printable(name)} holds no results"


def take(
    known: Iterable[Known],
    works: Mapping[str, Work],
    scale: Scale,
    digests: Mapping[str, Mapping[str, str]],
) -> Taken:
    """The records that are what is wanted, from the first place that has each.

    Args:
        known: Places, in order.
        works: What is wanted, by key.
        scale: Of the study.
        digests: Of what can be read here, by base.

    Raises:
        MalformedInput: a record does not have the settings that its key stands for.
    """
    found: dict[str, Record] = {}
    refused: Counter[tuple[str, str]] = Counter()
    for place in known:
        for key in works.keys() & place.records.keys() - found.keys():
            work, record = works[key], place.records[key]
            _check_settings(work, record, place.name)
            differs = difference(work, scale, inputs_read(work, digests.get(work.base, {})), record)
            if differs is None:
                found[key] = {**record, "taken_from": place.name}
            else:
                refused[place.name, differs] += 1
    return Taken(records=found, refused=dict(refused))


def _check_settings(work: Work, record: Record, name: str) -> None:
    wanted = json.loads(json.dumps(settings_of(work)))
    if json.loads(json.dumps(record["settings"])) != wanted:
        raise MalformedInput(
            f"the settings of the record {work.key} do not match its key",
            remedy="make it again with intruscope study report",
            file=name,
        )


def refusal_lines(refused: Mapping[tuple[str, str], int]) -> Sequence[str]:
    """A line for each place and difference."""
    return [
        f"{count} run{'' if count == 1 else 's'} of {name} not taken: {differs}"
        for (name, differs), count in sorted(refused.items())
    ]
