"""A whole scan: names to a plan, the plan through the engine, the records to one report.

The calling process never imports torch: workers do, and they start while the plan is made.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import OpenedPair, is_named, open_pair
from intruscope.engine.environment import environment
from intruscope.engine.executors import Executor, InlineExecutor, LocalExecutor, check_threads
from intruscope.engine.journal import Journal, default_folder, plan_hash
from intruscope.engine.run import run_tasks
from intruscope.engine.settings import RunOptions
from intruscope.engine.tasks import Outcome, Task, reporting
from intruscope.errors import OutputConflict, ResourceExhausted
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.progress import OnProgress, ignore_progress
from intruscope.records.plain import decode
from intruscope.spectra.findings import model_findings, without_figures
from intruscope.spectra.records import MatrixReport, ScanReport, ScanSettings
from intruscope.weights.matrices import CoverageEntry, Finding, MatrixPair, Pairing
from intruscope.weights.output import check_output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.adapters.opening import ModelLike

_WORKER_FUNCTION = "intruscope.spectra.matrix:analyse_pair"
_RUNTIME_BYTES = 350 << 20
_BASIS_COLUMNS = 1000


def plan(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
) -> Pairing:
    """Say what a scan would compare, from names and headers alone.

    Args:
        base: Model before: a path, ``org/name@revision``, ``base+adapter``, or a model in memory; see
            :func:`intruscope.adapters.opening.open_pair`. An adapter alone names its base itself.
        tuned: Model after: a full checkpoint or an adapter, by name or in memory.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: For adapters that do not store it.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    return open_pair(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha).pairing


def runs_here(options: RunOptions, *models: ModelLike | None) -> RunOptions:
    """The options, in this process where a model is in memory: it is not copied to workers."""
    named = all(model is None or is_named(model) for model in models)
    opened = len(models) > 0 and isinstance(models[0], OpenedPair) and not models[0].in_memory
    return options if named or opened else replace(options, workers=0)


def scan(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    settings: ScanSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> ScanReport:
    """Scan a base and what was trained from it.

    Args:
        base: Model before, see :func:`plan`. With a model in memory everything runs in this process,
            writes no file, and cannot be resumed.
        tuned: Model after, see :func:`plan`.
        settings: What is computed.
        options: How it runs.
        allow_pickle: See :func:`plan`.
        lora_alpha: See :func:`plan`.
        outputs: Where the caller will write what it makes of the report; refused now if that is an input.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with sentences that the user should see at once.

    Returns:
        The report; ``complete`` says whether everything that should be compared was.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    settings = settings or ScanSettings()
    options = runs_here(options or RunOptions(), base, tuned)
    executor = executor_for(_WORKER_FUNCTION, settings, options)
    executor.start()
    try:
        pairing = plan(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
        check_outputs(pairing, [*outputs, *([options.work_dir] if options.work_dir else [])])
        return scan_pairing(
            pairing, settings, options, executor=executor, on_progress=on_progress, on_notice=on_notice
        )
    finally:
        executor.close()


def check_outputs(pairing: Pairing, outputs: Sequence[Path]) -> None:
    """Nothing may be written over the files of the plan, nor into a model's folder."""
    files = [Path(str(record["path"])) for record in pairing.inputs]
    folders = [Path(name) for name in (pairing.base, pairing.tuned) if os.path.isdir(name)]  # noqa: PTH112
    for output in outputs:
        check_output(output, [*folders, *files])


def executor_for(function: str, settings: ScanSettings, options: RunOptions) -> Executor:
    """Where a function of one pair runs, by the options."""
    check_threads(settings.threads)
    if options.workers == 0:
        return InlineExecutor(function)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return LocalExecutor(
        function,
        num_workers=options.workers or max(1, cores // settings.threads),
        threads_per_worker=settings.threads,
        deadline_seconds=options.deadline_seconds,
        memory_bytes=options.memory_bytes,
    )


def scan_pairing(
    pairing: Pairing,
    settings: ScanSettings,
    options: RunOptions,
    *,
    executor: Executor,
    on_progress: OnProgress,
    on_notice: Callable[[str], None],
) -> ScanReport:
    """Run a plan; see :func:`scan`."""
    outcomes = run_pairs(
        pairing,
        pairing.pairs,
        settings,
        options,
        executor=executor,
        on_progress=on_progress,
        on_notice=on_notice,
        stage="scanning",
    )
    matrices = tuple(map(matrix_report, pairing.pairs, outcomes))
    finished = all(matrix.status == "done" for matrix in matrices)
    return ScanReport(
        base=pairing.base,
        tuned=pairing.tuned,
        settings=settings,
        matrices=matrices,
        coverage=_as_found(pairing.coverage, matrices),
        findings=(*pairing.findings, *model_findings(matrices)),
        complete=pairing.complete and finished,
        environment=environment(),
    )


def run_pairs(
    pairing: Pairing,
    pairs: Sequence[MatrixPair],
    settings: ScanSettings,
    options: RunOptions,
    *,
    executor: Executor,
    on_progress: OnProgress,
    on_notice: Callable[[str], None],
    stage: str,
    purpose: str | None = None,
) -> list[Outcome]:
    """Run the executor's function on pairs, durably.

    Args:
        pairing: The plan that the pairs are of.
        pairs: All of them, or some.
        settings: Part of each payload and of the journal's identity.
        options: How it runs.
        executor: Of a function of (pair, settings); closed on return.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with sentences that the user should see at once.
        stage: Name of the work in progress reports.
        purpose: Tells the records of another function apart from a scan's.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    tasks = [
        Task(
            key=pair.name,
            payload=(pair, settings),
            estimated_bytes=memory_for(pair, settings),
            weight=float(pair.base.shape[0]) * float(pair.base.shape[1]),
        )
        for pair in pairs
    ]
    return run_planned(
        pairing,
        tasks,
        settings,
        options,
        executor=executor,
        on_progress=on_progress,
        on_notice=on_notice,
        stage=stage,
        purpose=purpose,
    )


def run_planned(
    pairing: Pairing,
    tasks: Sequence[Task],
    settings: ScanSettings,
    options: RunOptions,
    *,
    executor: Executor,
    on_progress: OnProgress,
    on_notice: Callable[[str], None],
    stage: str,
    purpose: str | None = None,
) -> list[Outcome]:
    """Run tasks on what a plan names, durably; see :func:`run_pairs`, whose tasks hold a pair each.

    Args:
        pairing: The plan; it and the tasks' keys tell the journal of this run from others.
        tasks: In order.
        settings: Part of the journal's identity.
        options: How it runs.
        executor: Of the tasks' function; closed on return.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with sentences that the user should see at once.
        stage: Name of the work in progress reports.
        purpose: Everything else that the records depend on.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    identity = {
        "version": version("intruscope"),
        "settings": asdict(settings),
        "inputs": list(pairing.inputs),
        "matrices": [task.key for task in tasks],
        "reading": hashlib.sha256(repr(pairing.pairs).encode()).hexdigest(),
        **({"purpose": purpose} if purpose is not None else {}),
    }
    journal = None if pairing.in_memory else open_journal(identity, options, on_notice)
    try:
        return run_tasks(tasks, executor, journal=journal, on_event=reporting(on_progress, stage, "matrices"))
    finally:
        if journal is not None:
            journal.close()


def _as_found(
    ledger: tuple[CoverageEntry, ...], matrices: tuple[MatrixReport, ...]
) -> tuple[CoverageEntry, ...]:
    """The ledger with what only the weights could tell: which tensors are equal on both sides."""
    equal = {m.name for m in matrices if any(finding.code == "unchanged" for finding in m.findings)}

    def found(entry: CoverageEntry) -> CoverageEntry:
        if entry.status != "compared" or not entry.matrices or not equal.issuperset(entry.matrices):
            return entry
        reason = f"{entry.reason}; equal on both sides" if entry.reason else "equal on both sides"
        return replace(entry, status="unchanged", reason=reason)

    return tuple(map(found, ledger))


def memory_for(pair: MatrixPair, settings: ScanSettings) -> int:
    """Peak bytes of a worker on this pair: what is read, the working copies, and the runtime."""
    rows, columns = pair.base.shape
    smaller = min(rows, columns)
    dense = settings.prove or settings.exact_effective_rank or settings.k == "all"
    if dense or smaller <= DENSE_LIMIT or 32 * max(int(settings.k), settings.maps) > smaller:
        # Two float64 decompositions with all vectors (measured: 70 to 194 bytes an entry, more when square).
        working = 64 * rows * columns + 128 * smaller * smaller
    else:
        working = 24 * rows * columns + 4 * _BASIS_COLUMNS * (rows + columns)
    return pair.estimated_bytes + working + _RUNTIME_BYTES


def open_journal(
    identity: dict[str, Any], options: RunOptions, on_notice: Callable[[str], None]
) -> Journal | None:
    """Open the journal of a plan in the folder of the options, or in the user's cache.

    Args:
        identity: What the run is; plain data.
        options: Its folder, and whether to start over.
        on_notice: Called with a sentence if records were damaged, or if nothing can be kept.

    Returns:
        None if no folder was given and the cache cannot be written, or another run of this plan uses it.

    Raises:
        OutputConflict, ResourceExhausted: see :class:`intruscope.engine.journal.Journal`.
    """
    try:
        folder = options.work_dir or default_folder(plan_hash(identity))
        journal = Journal(folder, identity, fresh=options.fresh)
    except (ResourceExhausted, OutputConflict) as error:
        if options.work_dir is not None:
            raise
        on_notice(f"this run cannot be resumed if it is interrupted: {error.fact}")
        return None
    if journal.num_damaged:
        records = (
            "record of an earlier run is" if journal.num_damaged == 1 else "records of an earlier run are"
        )
        on_notice(f"{journal.num_damaged} damaged {records} computed again")
    return journal


def matrix_report(pair: MatrixPair, outcome: Outcome) -> MatrixReport:
    """The report of one pair, also where its worker gave none."""
    if outcome.record is not None:
        return decode(MatrixReport, outcome.record)
    assert outcome.status != "done"
    finding = Finding(
        code=outcome.status, severity="error", message=outcome.reason or "no result", matrix=pair.name
    )
    return without_figures(pair, outcome.status, finding)
