"""The pool of a study: what is asked for and not there yet is run, each piece once, whoever asked for it.

``journal/`` says at which scale, on which inputs and by which version the study runs, keeps a second one out,
and holds a record of everything that is finished; ``runs/KEY/`` is the folder of one piece of work.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.engine.executors import Event, Executor, LocalExecutor
from intruscope.engine.journal import Journal, read_records
from intruscope.engine.run import run_tasks
from intruscope.engine.tasks import Task
from intruscope.errors import IncompleteResult, OutputConflict, UsageError
from intruscope.studies.grid import label_of
from intruscope.studies.inputs import check_data, check_seeds, digests, inputs_of
from intruscope.studies.recipes import places
from intruscope.studies.records import records_of
from intruscope.studies.sizes import core_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from intruscope.engine.tasks import Progress
    from intruscope.studies.grid import Work
    from intruscope.studies.recipes import Place
    from intruscope.studies.records import Record
    from intruscope.studies.scales import Scale

SCHEMA = "intruscope.study/1"
_FUNCTION = "intruscope.studies.execute:execute"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """What a study has by now.

    Attributes:
        records: One for each piece of work that was asked for and is finished, by key.
        num_new: Of them, how many were run just now.
        failed: Label and reason of what has no record.
    """

    records: Mapping[str, Record]
    num_new: int
    failed: tuple[tuple[str, str], ...]


def wanted(found: Sequence[Place]) -> dict[str, Work]:
    """The pieces of work behind some arms, each once, in their order."""
    return {place.work.key: place.work for place in found}


def run_study(
    scale: Scale,
    out: Path,
    *,
    recipes: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    data: Path | None = None,
    jobs: int = 1,
    keep_models: bool = False,
    unpack: Callable[[Path], None] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> StudyReport:
    """Run what is missing; after an interruption, or with other recipes, the same folder goes on.

    Args:
        scale: Bases, tasks, seeds.
        out: Folder of the study.
        recipes: By name; all by default.
        seeds: Instead of the scale's.
        data: Folder of models, tasks and texts.
        jobs: Processes, of one thread each.
        keep_models: Keep every tuned model.
        unpack: Fills a folder with what is shipped (``intruscope.demo.unpack``).
        on_progress: Called for every event of the engine.

    Returns:
        Records of everything that was asked for, also of what was there before.

    Raises:
        UsageError: seeds that make no sense, or data that are not there.
        OutputConflict: the folder holds something else, a study of another version, scale or input, or one
            that is running.
        ResourceExhausted: no memory or no room; what is finished is kept.
    """
    from intruscope.studies.execute import Assignment

    if seeds is not None:
        check_seeds(seeds)
    check_data(scale, data)
    works = wanted(places(scale, recipes, of_seeds=seeds))
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    read = {base.name: digests(base, inputs_of(base, out, data, unpack=unpack)) for base in scale.bases}
    with _journal(out, scale, read) as journal:
        before = set(journal.records)
        tasks = [
            Task(
                key=key,
                payload=Assignment(
                    work=work,
                    scale=scale.name,
                    out=out.resolve(),
                    data=data.resolve() if data is not None else None,
                    digests=read.get(work.base, {}),
                    keep_models=keep_models,
                ),
                weight=core_seconds(work, scale) or 1.0,
            )
            for key, work in works.items()
        ]
        executor = _Lenient(LocalExecutor(_FUNCTION, num_workers=jobs, threads_per_worker=1))
        outcomes = run_tasks(tasks, executor, journal=journal, on_progress=on_progress)
        failed = [
            (label_of(works[outcome.key]), outcome.reason or "no result")
            for outcome in outcomes
            if outcome.record is None
        ]
        records = records_of(works, journal.records)
    return StudyReport(records=records, num_new=len(set(records) - before), failed=tuple(failed))


def check_complete(report: StudyReport) -> None:
    """Say what has no record.

    Raises:
        IncompleteResult: something failed.
    """
    if report.failed:
        told = "; ".join(f"{label}: {reason}" for label, reason in report.failed[:_SHOWN])
        more = f"; and {len(report.failed) - _SHOWN} more" if len(report.failed) > _SHOWN else ""
        raise IncompleteResult(
            f"{len(report.failed)} runs failed, expected none ({told}{more}); all others are kept",
            remedy="run the same command again: they are tried once more",
        )


def read_study(out: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The scale of a study, and its records as they are in its journal, also while it is running.

    Raises:
        UsageError: the folder holds no study.
        OutputConflict: of another version.
    """
    path = out / "journal" / "plan.json"
    if not path.is_file():
        raise UsageError(
            "got a folder without a study, expected the --out of intruscope study run",
            remedy="run one first: intruscope study run all --scale smoke --out DIR",
            file=out,
        )
    plan = json.loads(path.read_bytes())
    if plan.get("schema") != SCHEMA or plan.get("version") != version("intruscope"):
        raise _other_version(out, plan)
    return str(plan["scale"]), read_records(out / "journal")


def study_records(out: Path) -> tuple[str, dict[str, Record]]:
    """The scale of a study and its records with their settings; errors as :func:`read_study`."""
    scale, journaled = read_study(out)
    settings = {key: work_of(out, key) for key in journaled}
    return scale, {key: {**journaled[key], "key": key, "settings": settings[key]} for key in journaled}


def work_of(out: Path, key: str) -> dict[str, Any]:
    """The settings of one piece of work, from its folder."""
    found: dict[str, Any] = json.loads((out / "runs" / key / "settings.json").read_bytes())["settings"]
    return found


def _other_version(out: Path, plan: Mapping[str, Any]) -> OutputConflict:
    there = f"{plan.get('schema')} of intruscope {plan.get('version')}"
    return OutputConflict(
        f"holds results of {there}, expected {SCHEMA} of {version('intruscope')}",
        remedy="read them with that version, or choose another --out",
        file=out,
    )


def _check_folder(out: Path) -> None:
    """Nothing but a study may be in the folder."""
    if out.exists() and not out.is_dir():
        raise OutputConflict("is a file, expected a folder", remedy="choose another --out", file=out)
    if out.is_dir() and any(out.iterdir()) and not (out / "journal" / "plan.json").is_file():
        ours = {"inputs", "journal"}  # a study that was stopped before its plan was written
        foreign = sorted(each.name for each in out.iterdir() if each.name not in ours)
        if foreign:
            fact = "holds something else than a study, expected a new or empty folder"
            raise OutputConflict(fact, remedy="choose another --out", file=out)


def _journal(out: Path, scale: Scale, read: Mapping[str, Mapping[str, str]]) -> Journal:
    plan = {
        "schema": SCHEMA,
        "version": version("intruscope"),
        "scale": scale.name,
        "code": code_digest(),
        "inputs": {base: dict(found) for base, found in read.items()},
    }
    path = out / "journal" / "plan.json"
    if path.is_file():
        before = json.loads(path.read_bytes())
        if before.get("schema") != SCHEMA or before.get("version") != plan["version"]:
            raise _other_version(out, before)
        plan["code"] = before.get("code", plan["code"])  # a fix must not throw away hours: told in each run
    try:
        return Journal(out / "journal", plan)
    except OutputConflict as error:
        raise OutputConflict(error.fact, remedy="choose another --out", file=out) from None


def code_digest() -> str:
    """SHA-256 over the package's own source files, by name: what a version number alone does not tell."""
    root = Path(__file__).parents[1]
    state = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        state.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


class _Lenient(Executor):
    """An executor for which a result that tells of a failure is one."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def start(self) -> None:
        self._inner.start()

    def close(self) -> None:
        self._inner.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        from intruscope.studies.execute import FAILED

        for event in self._inner.run(tasks):
            if event.kind == "done" and FAILED in event.detail:
                yield Event("failed", event.key, event.detail[FAILED])
            else:
                yield event
