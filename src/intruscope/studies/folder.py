"""The folder of a study: what says that it is one, and the records in it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.engine.journal import read_records
from intruscope.errors import OutputConflict, UsageError

if TYPE_CHECKING:
    from intruscope.studies.records import Record

SCHEMA = "intruscope.study/2"
_PLAN = Path("journal") / "plan.json"


def is_study(path: Path) -> bool:
    """Whether a folder is a study's."""
    return (path / _PLAN).is_file()


def study_records(out: Path) -> tuple[str, dict[str, Record]]:
    """The scale of a study and its records with their settings, also while it is running.

    Raises:
        UsageError: the folder holds no study.
        OutputConflict: of another version.
    """
    if not is_study(out):
        raise UsageError(
            "the folder does not hold a study",
            remedy="run one first: intruscope study run all --scale smoke --out FOLDER",
            file=out,
        )
    plan = plan_in(out)
    found = read_records(out / "journal")
    return str(plan["scale"]), {key: {**record, "key": key} for key, record in found.items()}


def plan_in(out: Path) -> dict[str, Any]:
    """What a study's folder says of itself.

    Raises:
        OutputConflict: it is of another version.
    """
    plan: dict[str, Any] = json.loads((out / _PLAN).read_bytes())
    if plan.get("schema") != SCHEMA or plan.get("version") != version("intruscope"):
        there = f"{plan.get('schema')} of intruscope {plan.get('version')}"
        raise OutputConflict(
            f"the folder holds results of {there}; this is {SCHEMA} of intruscope {version('intruscope')}",
            remedy="use that version to read them, or choose another --out",
            file=out,
        )
    return plan
