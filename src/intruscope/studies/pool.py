"""The pool of a study: what is asked for and not there yet is run, each piece once, whoever asked for it.

``journal/`` says at which scale, on which inputs and by which version the study runs, keeps a second one out,
and holds a record of everything that is finished, here or elsewhere; ``runs/KEY/`` is the folder of one piece
of work that is done here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from intruscope.engine.executors import Event, Executor, LocalExecutor
from intruscope.engine.journal import Journal
from intruscope.engine.ray_executor import RayExecutor, require_ray
from intruscope.engine.run import run_tasks
from intruscope.engine.tasks import Task, reporting
from intruscope.errors import IncompleteResult, OutputConflict
from intruscope.progress import OnProgress, ignore_progress
from intruscope.studies.folder import SCHEMA, is_study, plan_in
from intruscope.studies.grid import label_of
from intruscope.studies.inputs import check_data, check_seeds, digests, inputs_of
from intruscope.studies.known import read_known, take
from intruscope.studies.origins import code_digest, inputs_read
from intruscope.studies.recipes import places
from intruscope.studies.records import records_of
from intruscope.studies.sizes import core_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from intruscope.studies.grid import Work
    from intruscope.studies.recipes import RecipePlace
    from intruscope.studies.records import Record
    from intruscope.studies.scale import Scale

_FUNCTION = "intruscope.studies.execute:execute"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """What a study has by now.

    Attributes:
        records: One for each piece of work that was asked for and is finished, by key.
        num_new: Of them, how many were run just now.
        num_taken: How many were taken just now from what is known.
        refused: How many known records were another run after all, by place and difference.
        failed: Label and reason of what has no record.
    """

    records: Mapping[str, Record]
    num_new: int
    num_taken: int
    refused: Mapping[tuple[str, str], int]
    failed: tuple[tuple[str, str], ...]


def wanted(found: Sequence[RecipePlace]) -> dict[str, Work]:
    """The pieces of work behind some arms, each once, in their order."""
    return {place.work.key: place.work for place in found}


def run_study(
    scale: Scale,
    out: Path,
    *,
    recipes: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    data: Path | None = None,
    known: Sequence[str] = (),
    jobs: int | None = None,
    ray: str | None = None,
    keep_models: bool = False,
    unpack: Callable[[Path, str], None] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> StudyReport:
    """Run what is missing; after an interruption, or with other recipes, the same folder goes on.

    Args:
        scale: Bases, tasks, seeds.
        out: Folder of the study.
        recipes: By name; all by default.
        seeds: Instead of the scale's.
        data: Folder of models, tasks and texts.
        known: Finished runs from elsewhere, which are taken instead of being run where nothing that a figure
            depends on differs: see :func:`intruscope.studies.known.read_known`. The first that has one
            counts.
        jobs: Processes at once, of one thread each; one by default, on a cluster as many as it can take.
        ray: Run them on the machines of this Ray cluster (``auto``, or ``HOST:PORT``), which all see ``out``
            and ``data`` under the same paths; in processes of this machine by default.
        keep_models: Keep every tuned model.
        unpack: Fills a folder with the shipped model, or a grown one (``intruscope.demo.unpack``).
        on_progress: Called before the first run, and whenever one is started or finished.

    Returns:
        Records of everything that was asked for, also of what was there before.

    Raises:
        UsageError: seeds that make no sense, or data or known results that are not there.
        MalformedInput: known results that are damaged or of another schema.
        OutputConflict: the folder holds something else, a study of another version, scale or input, or one
            that is running.
        ResourceExhausted: no memory or no room; what is finished is kept.
    """
    from intruscope.studies.execute import Assignment

    if ray is not None:
        require_ray()
    if seeds is not None:
        check_seeds(seeds)
    check_data(scale, data)
    works = wanted(places(scale, recipes, of_seeds=seeds))
    elsewhere = [read_known(name, scale) for name in known]
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    read = {base.name: digests(base, inputs_of(base, out, data, unpack=unpack)) for base in scale.bases}
    with _journal(out, scale, read) as journal:
        before = set(journal.records)
        missing = {key: work for key, work in works.items() if key not in before}
        taken = take(elsewhere, missing, scale, read)
        for key, record in taken.records.items():
            journal.append(key, record)
        tasks = [
            Task(
                key=key,
                payload=Assignment(
                    work=work,
                    scale=scale.name,
                    out=out.resolve(),
                    data=data.resolve() if data is not None else None,
                    inputs=inputs_read(work, read.get(work.base, {})),
                    version=version("intruscope"),
                    keep_models=keep_models,
                ),
                weight=core_seconds(work, scale) or 1.0,
            )
            for key, work in works.items()
        ]
        executor = _Lenient(_executor(jobs, ray))
        outcomes = run_tasks(
            tasks, executor, journal=journal, on_event=reporting(on_progress, "running", "runs")
        )
        failed = [
            (label_of(works[outcome.key]), outcome.reason or "no result")
            for outcome in outcomes
            if outcome.record is None
        ]
        records = records_of(works, journal.records)
    return StudyReport(
        records=records,
        num_new=len(set(records) - before - set(taken.records)),
        num_taken=len(taken.records),
        refused=taken.refused,
        failed=tuple(failed),
    )


def check_complete(report: StudyReport) -> None:
    """Say what has no record.

    Raises:
        IncompleteResult: something failed.
    """
    if report.failed:
        listed = "; ".join(f"{label}: {reason}" for label, reason in report.failed[:_SHOWN])
        more = f"; and {len(report.failed) - _SHOWN} more" if len(report.failed) > _SHOWN else ""
        raise IncompleteResult(
            f"{len(report.failed)} runs failed ({listed}{more}); all others are kept",
            remedy="run the same command again to retry them",
        )


def _check_folder(out: Path) -> None:
    """Nothing but a study may be in the folder."""
    if out.exists() and not out.is_dir():
        raise OutputConflict("this is a file, not a folder", remedy="choose another --out", file=out)
    if out.is_dir() and any(out.iterdir()) and not is_study(out):
        ours = {"inputs", "journal"}  # a study that was stopped before its plan was written
        foreign = sorted(each.name for each in out.iterdir() if each.name not in ours)
        if foreign:
            fact = "the folder holds something other than a study"
            raise OutputConflict(fact, remedy="choose a new or empty folder with --out", file=out)


def _journal(out: Path, scale: Scale, read: Mapping[str, Mapping[str, str]]) -> Journal:
    plan = {
        "schema": SCHEMA,
        "version": version("intruscope"),
        "scale": scale.name,
        "code": code_digest(),
        "inputs": {base: dict(found) for base, found in read.items()},
    }
    if is_study(out):
        # A fix must not throw away hours: each run tells what made it.
        plan["code"] = plan_in(out).get("code", plan["code"])
    try:
        return Journal(out / "journal", plan)
    except OutputConflict as error:
        raise OutputConflict(error.fact, remedy="choose another --out", file=out) from None


def _executor(jobs: int | None, ray: str | None) -> Executor:
    if ray is None:
        return LocalExecutor(_FUNCTION, num_workers=jobs or 1, threads_per_worker=1, gpus=_gpus())
    return RayExecutor(_FUNCTION, address=ray, num_tasks=jobs, threads_per_task=1)


def _gpus() -> tuple[str, ...]:
    """GPUs to spread runs over, as ``CUDA_VISIBLE_DEVICES`` names them; none where there is no choice."""
    import torch

    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if shown is None else shown.split(",")[:count]
    return tuple(names) if count > 1 else ()


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
