"""One piece of work of a study, in its own folder: what a worker process runs.

``settings.json`` says what it is and with what it was made, and so does the record that comes of it. A run
that was killed goes on from the last checkpoint of its training, and from the last part that was measured. A
model is dropped once everything of it is measured.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import platform
import shutil
import threading
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from intruscope.engine.journal import Journal
from intruscope.errors import (
    IncompleteResult,
    IntruscopeError,
    OutputConflict,
    ResourceExhausted,
    UsageError,
    printable,
)
from intruscope.studies.grid import Chain, Checkpoint, MergeSet, Run, settings_of
from intruscope.studies.inputs import inputs_of
from intruscope.studies.scales import find_scale
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from intruscope.studies.grid import Work
    from intruscope.studies.inputs import Inputs
    from intruscope.studies.scale import Base, Scale

_PATIENCE_SECONDS = 120.0
_TICK_SECONDS = 5.0
FAILED = "failed"
"""Key of a failure in place of a result: it is reported, not kept, and retried by the next study."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker is given.

    Attributes:
        work: To be done.
        scale: Name of the scale.
        out: Folder of the study.
        data: Folder of models, tasks and texts.
        inputs: SHA-256 of what the work reads, by name.
        version: Of Intruscope, that everything of one study is made by.
        keep_models: Keep them.
    """

    work: Work
    scale: str
    out: Path
    data: Path | None
    inputs: dict[str, str]
    version: str
    keep_models: bool = False


def execute(assignment: Assignment) -> dict[str, Any]:
    """Do one piece of work, or what is left of it.

    Returns:
        The figures with ``settings``, ``origin`` and ``status``: ``ok``, or ``diverged`` with a ``reason``:
        the loss or a weight became NaN or infinite, or the model learned nothing
        (:mod:`intruscope.studies.measure`). Or ``{"failed": why}``.

    Raises:
        ResourceExhausted: memory or disk; everything waits until there is room.
        UsageError: this machine, one of several, does not see the study or has another version.
    """
    _check_machine(assignment)
    folder = assignment.out / "runs" / assignment.work.key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder), _spent(folder / "spent.json") as spent:
            found = _done(assignment, folder)
    except ResourceExhausted:
        raise
    except IntruscopeError as error:
        return {FAILED: str(error)}
    except Exception as error:  # a fault of ours must not end hours of other work
        return {FAILED: f"{type(error).__name__}: {printable(error)}"}
    found.update(spent)
    return found


def _check_machine(assignment: Assignment) -> None:
    """On a machine of a cluster nothing else would say so before hours are gone."""
    for what, path in (("study", assignment.out / "journal"), ("data", assignment.data)):
        if path is not None and not path.is_dir():
            raise UsageError(
                f"the machine {printable(platform.node())} cannot see the folder of the {what}",
                remedy="put it on a file system that all machines share, at the same path, or leave this "
                "machine out "
                "of the cluster",
                file=path,
            )
    if assignment.version != version("intruscope"):
        raise UsageError(
            f"the machine {printable(platform.node())} has intruscope {version('intruscope')}, and the "
            "study runs "
            f"with {assignment.version}",
            remedy="install the same version on every machine of the cluster",
        )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of one piece of work: a process of a lost machine or a killed study may still be in it.

    Raises:
        OutputConflict: it does not leave.
    """
    with (folder / "lock").open("wb") as stream:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutputConflict(
                        "another process is still using this folder",
                        remedy="wait for it to end, then run the same command again",
                        file=folder,
                    ) from None
                time.sleep(0.5)
        yield


@contextlib.contextmanager
def _spent(path: Path) -> Iterator[dict[str, float]]:
    """What a piece of work takes, also before it was killed and resumed: ``seconds`` and ``core_seconds``.

    The file is rewritten every few seconds, so that a process that is killed loses no more than these. The
    mapping is filled in at the end.
    """
    before = {"seconds": 0.0, "core_seconds": 0.0}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads(path.read_bytes())
    started = time.perf_counter(), time.process_time()
    ended = threading.Event()

    def now() -> dict[str, float]:
        took = time.perf_counter() - started[0], time.process_time() - started[1]
        return {name: round(before[name] + more, 2) for name, more in zip(before, took, strict=True)}

    def keep() -> None:
        while not ended.wait(_TICK_SECONDS):
            write_json_file(now(), path)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    found: dict[str, float] = {}
    try:
        yield found
    finally:
        ended.set()
        keeper.join()
        found.update(now())
        write_json_file(found, path)


def _done(assignment: Assignment, folder: Path) -> dict[str, Any]:
    from intruscope.studies.origins import origin_of

    work = assignment.work
    scale = find_scale(assignment.scale)
    origin = origin_of(work, scale, assignment.inputs)
    identity = {"key": work.key, "settings": settings_of(work)}
    write_json_file({"schema": "intruscope.study.run/2", **identity, **origin}, folder / "settings.json")
    return {**_figures(assignment, scale, folder), **identity, "origin": origin}


def _figures(assignment: Assignment, scale: Scale, folder: Path) -> dict[str, Any]:
    from intruscope.adapters.live_models import quiet

    work = assignment.work
    if isinstance(work, Checkpoint):
        from intruscope.studies.weights import weight_figures

        found = weight_figures(work.base, work.tuned, work=folder / "scans", is_large=True)
        return {"status": "ok", "reason": None, **found}
    base = scale.base(work.base)
    inputs = inputs_of(base, assignment.out, assignment.data)
    with quiet():
        if isinstance(work, Chain):
            from intruscope.studies.chains import chain_figures

            found = chain_figures(work, base, inputs, folder)
        elif isinstance(work, MergeSet):
            found = _merge_set(work, inputs, folder)
        else:
            found = _run(work, base, inputs, folder)
    if not assignment.keep_models:
        for name in ("train/model", "parts", "merged", "scans", "survey", "sweep"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return found


def _run(run: Run, base: Base, inputs: Inputs, folder: Path) -> dict[str, Any]:
    from intruscope.studies.measure import measured_run

    with Journal(folder / "measured", {"run": run.key}) as journal:
        started = time.perf_counter(), time.process_time()
        if not (folder / "train" / "run.json").exists():
            try:
                _train(run, base, inputs, folder / "train")
            except IncompleteResult as error:
                shutil.rmtree(folder / "train", ignore_errors=True)
                return {"status": "diverged", "reason": error.fact}
        trained = time.perf_counter(), time.process_time()
        found = measured_run(run, base, inputs, folder, journal)
        took = {
            "train_seconds": round(trained[0] - started[0], 2),
            "train_core_seconds": round(trained[1] - started[1], 2),
            "measure_seconds": round(time.perf_counter() - trained[0], 2),
            "measure_core_seconds": round(time.process_time() - trained[1], 2),
        }
    learned = found.pop("learned")
    return {**found, **took, "status": "ok" if learned else "diverged"}


def _merge_set(work: MergeSet, inputs: Inputs, folder: Path) -> dict[str, Any]:
    from intruscope.studies.merging import merge_set_figures
    from intruscope.studies.merging_parts import train_parts

    _freeze_imports()
    with Journal(folder / "measured", {"set": work.key}) as journal:
        try:
            adapters = train_parts(work, inputs, folder)
        except IncompleteResult as error:
            return {"status": "diverged", "reason": error.fact}
        return merge_set_figures(work, inputs, adapters, journal)


def _train(run: Run, base: Base, inputs: Inputs, out: Path) -> None:
    from intruscope.forgetting.tasks import TextTask
    from intruscope.studies.measure import held_out
    from intruscope.studies.training import tune_settings
    from intruscope.sweep.live import limited
    from intruscope.train.tune import tune

    _freeze_imports()
    scored = None
    if run.look_every:
        task = held_out(run, inputs)
        scored = (
            _first(task, base.look_examples)
            if isinstance(task, TextTask)
            else limited(task, base.look_examples)
        )
    tune(
        inputs.base,
        out=out,
        settings=tune_settings(run, look_every=run.look_every),
        data=inputs.task(run.task, "train"),
        held_out=scored,
        forget_text=inputs.text if run.look_every else (),
        pictures=False,  # a study draws its own
    )


@functools.cache
def _freeze_imports() -> None:
    """Once per process: else every Trainer's garbage collection goes through all imported modules."""
    gc.freeze()


def _first(task: Any, num_documents: int) -> Any:
    """The first documents of a held-out text."""
    return replace(task, corpus=replace(task.corpus, documents=task.corpus.documents[:num_documents]))
