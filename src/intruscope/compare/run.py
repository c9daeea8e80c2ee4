"""A whole comparison: names to tasks, the tasks through the engine, the records to one report."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from intruscope.compare.assemble import assemble
from intruscope.compare.matrix_task import MatrixComparison
from intruscope.compare.opening import open_models
from intruscope.compare.settings import CompareSettings
from intruscope.engine.environment import environment
from intruscope.engine.settings import RunOptions
from intruscope.engine.tasks import Task
from intruscope.errors import UsageError
from intruscope.progress import OnProgress, ignore_progress
from intruscope.records.plain import decode
from intruscope.spectra.scan import check_outputs, executor_for, memory_for, run_planned, runs_here
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from intruscope.adapters.opening import ModelLike
    from intruscope.compare.matrix_task import MatrixTask
    from intruscope.compare.opening import Opened
    from intruscope.compare.records import CompareReport
    from intruscope.engine.tasks import Outcome
    from intruscope.forgetting.settings import ForgetSettings

_FUNCTION = "intruscope.compare.matrix:compare_matrix"
_DOUBLE_BYTES = 8


def compare(
    *models: ModelLike,
    text: str | Path | Sequence[str | Path] | None = None,
    field: str | None = None,
    settings: CompareSettings | None = None,
    measuring: ForgetSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    same_base: bool = False,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> CompareReport:
    """Compare several fine-tunes of one base, and say what adding them up would do.

    Args:
        *models: The base and two or more fine-tunes (adapters or full checkpoints), or two or more adapters
            without their base. By name or in memory, see :func:`intruscope.adapters.opening.open_pair`.
        text: With a base: measure the forgetting of the merge beside its parts on these files, patterns, or
            datasets on the hub (``hf:org/name:split``).
        field: Column that holds the text, in tables.
        settings: What is computed.
        measuring: How losses on the text are measured.
        options: How it runs.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        same_base: Trust that all adapters are of one base, although their configs name different ones.
        outputs: Paths that the caller will write; refused now where one is an input.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with sentences that the user should see at once.

    Returns:
        The report; ``complete`` says whether everything that should be compared was.

    Raises:
        UsageError: fewer than two fine-tunes, a full checkpoint or a text without a base, or adapters of
            different bases.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    settings = settings or CompareSettings()
    options = runs_here(options or RunOptions(), *models)
    executor = executor_for(_FUNCTION, settings.scanning, options)
    executor.start()
    try:
        opened = open_models(models, allow_pickle=allow_pickle, same_base=same_base)
        if text is not None and opened.fine_tunes is None:
            raise UsageError(
                "forgetting needs the base, and only adapters are given",
                remedy="name the base first, or leave the text out",
            )
        for source in (*opened.sources, *([opened.fine_tunes.base] if opened.fine_tunes else [])):
            check_outputs(
                replace(opened.pairing, base=source.name, tuned=source.name),
                [*outputs, *([options.work_dir] if options.work_dir else [])],
            )
        tasks = opened.tasks(settings)
        outcomes = run_planned(
            opened.pairing,
            [_task(task) for task in tasks],
            settings.scanning,
            options,
            executor=executor,
            on_progress=on_progress,
            on_notice=on_notice,
            stage="comparing",
            purpose=f"compare {sorted(asdict(settings).items())!r}",
        )
    finally:
        executor.close()
    report = _report(opened, settings, tasks, outcomes)
    if text is None:
        return report
    if len(report.merge.modules) < len(tasks):
        message = "some updates cannot be read, so there is no merge whose forgetting could be measured"
        finding = Finding(code="forgetting-not-measured", severity="error", message=message)
        return replace(report, findings=(*report.findings, finding), complete=False)
    from intruscope.compare.forgetting import measure_merge

    forgetting = measure_merge(
        opened, report, text=text, field=field, measuring=measuring, on_progress=on_progress
    )
    return replace(report, merge=replace(report.merge, forgetting=forgetting))


def _report(
    opened: Opened, settings: CompareSettings, tasks: Sequence[MatrixTask], outcomes: Sequence[Outcome]
) -> CompareReport:
    found: dict[str, MatrixComparison] = {}
    failed = []
    for task, outcome in zip(tasks, outcomes, strict=True):
        if outcome.record is not None:
            found[task.name] = decode(MatrixComparison, outcome.record)
        else:
            message = outcome.reason or "no result"
            failed.append(Finding(code=outcome.status, severity="error", message=message, matrix=task.name))
    return assemble(opened, settings, found, failed, environment=environment())


def _task(task: MatrixTask) -> Task:
    """A task of the engine: with its weight, and the memory that it takes."""
    rows, columns = task.shape
    pairs = [pair for pair in task.pairs if pair is not None]
    # The factors again in float64 with their bases, and those of all of them side by side.
    working = 4 * sum(pair.estimated_bytes for pair in pairs)
    if task.has_base:
        working += memory_for(pairs[0], task.settings.scanning)
    return Task(
        key=task.name,
        payload=task,
        estimated_bytes=working + 16 * _DOUBLE_BYTES * (rows + columns),
        weight=float(rows) * float(columns) if task.has_base else float(rows + columns) * len(pairs),
    )
