"""``verify``: open base, adapters and merged model, judge every module, and say what else changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.opening import OpenedPair, open_pair
from intruscope.engine.environment import environment
from intruscope.engine.settings import RunOptions
from intruscope.engine.tasks import Outcome, Task
from intruscope.errors import UsageError, printable
from intruscope.progress import OnProgress, ignore_progress
from intruscope.records.plain import decode
from intruscope.spectra.records import ScanSettings
from intruscope.spectra.scan import check_outputs, executor_for, run_planned, runs_here
from intruscope.verify.findings import report_findings
from intruscope.verify.plan import make_plan
from intruscope.verify.records import (
    FAILED,
    AdapterUse,
    BaseFit,
    ModuleCheck,
    OtherTensor,
    Verdict,
    VerifyReport,
)
from intruscope.verify.tasks import Check, Compare
from intruscope.weights.matrices import Pairing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from intruscope.adapters.opening import ModelLike
    from intruscope.verify.plan import VerifyPlan

_WORKER_FUNCTION = "intruscope.verify.matrix:verify_task"

AdapterLike: TypeAlias = "ModelLike | Sequence[ModelLike]"


def verify(
    base: ModelLike,
    adapter: AdapterLike,
    merged: ModelLike,
    *,
    weights: Sequence[float] | None = None,
    or_base: ModelLike | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> VerifyReport:
    """Say whether a merged model is a base with one or several adapters applied, module by module.

    Args:
        base: Model before: a path, ``org/name@revision``, or a model in memory; see
            :func:`intruscope.adapters.opening.open_pair`.
        adapter: What should be in the merged model; a list for several. Adapters of any kind, or full
            checkpoints, which stand for their difference from the base.
        merged: The merged model: a full checkpoint, by name or in memory.
        weights: Weight of each adapter; 1 by default.
        or_base: Another base that the merge may have been made on, such as the 16-bit model that a quantised
            one was made from. The report is about the base that fits better.
        options: How it runs.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: For adapters that do not store it.
        outputs: Where the caller will write what it makes of the report; refused now if that is an input.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with sentences that the user should see at once.

    Returns:
        The report; ``verdict``, ``has_failed`` and ``is_open`` sum it up.

    Raises:
        UsageError: MERGED is an adapter, or weights do not go with the adapters.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    adapters: list[ModelLike] = (
        list(adapter) if isinstance(adapter, (list, tuple)) else [cast("ModelLike", adapter)]
    )
    factors = _checked_weights(weights, len(adapters))
    given = (base, *adapters, merged, *([or_base] if or_base is not None else []))
    options = runs_here(options or RunOptions(), *given)
    candidates = []
    for each in (base, or_base):
        if each is None:
            continue
        opened = _open(each, adapters, merged, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
        check_outputs(opened.pairing, [*outputs, *([options.work_dir] if options.work_dir else [])])
        candidates.append(_judge(opened, factors, options, on_progress=on_progress, on_notice=on_notice))
    best = max(candidates, key=_fitness)
    if or_base is None:
        return best.report
    ordered = [best, *(each for each in candidates if each is not best)]
    report = replace(best.report, bases=tuple(each.fit for each in ordered))
    return replace(report, findings=report_findings(report, best.given))


def _checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if not count:
        raise UsageError("no adapter is given", remedy="name one or more adapters")
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise UsageError(
            f"there are {len(weights)} weights for {count} adapters",
            remedy="give one weight for each adapter",
        )
    wrong = [weight for weight in weights if not 0 < abs(weight) < 1e6]
    if wrong:
        raise UsageError(
            f"the weight {wrong[0]:g} is not allowed",
            remedy="give a finite weight other than 0, or leave this adapter out",
        )
    return tuple(map(float, weights))


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """Everything that is open, with one plan's worth of identity for the journal.

    Attributes:
        adapters: Each on the base.
        merged: The merged model on the base.
        pairing: All inputs together.
    """

    adapters: tuple[OpenedPair, ...]
    merged: OpenedPair
    pairing: Pairing


def _open(
    base: ModelLike,
    adapters: Sequence[ModelLike],
    merged: ModelLike,
    *,
    allow_pickle: bool,
    lora_alpha: float | None,
) -> _Opened:
    opened = []
    source: Any = base
    for each in adapters:
        pair = open_pair(source, each, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
        source = pair.base
        opened.append(pair)
    final = open_pair(source, merged, allow_pickle=allow_pickle)
    if isinstance(final.tuned, AdapterSource):
        raise UsageError(
            f"{printable(final.tuned.name)} is itself an adapter: nothing is merged in it",
            remedy="give the merged model, such as the folder that merge_and_unload().save_pretrained wrote",
            file=final.tuned.path,
        )
    parts = [pair.pairing for pair in (*opened, final)]
    return _Opened(
        adapters=tuple(opened),
        merged=final,
        pairing=Pairing(
            base=final.pairing.base,
            tuned=final.pairing.tuned,
            pairs=(),
            coverage=(),
            findings=tuple(dict.fromkeys(finding for part in parts for finding in part.findings)),
            inputs=tuple({str(each["path"]): each for part in parts for each in part.inputs}.values()),
            complete=True,
            in_memory=any(part.in_memory for part in parts),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """One base's report.

    Attributes:
        report: Without the other base.
        fit: How well the base fits.
        given: Findings of the files themselves.
    """

    report: VerifyReport
    fit: BaseFit
    given: tuple[Any, ...]


def _fitness(judged: _Judged) -> tuple[int, int, float]:
    residual = judged.fit.relative_residual
    return judged.fit.num_applied, judged.fit.num_equal, -(float("inf") if residual is None else residual)


def _judge(
    opened: _Opened,
    weights: tuple[float, ...],
    options: RunOptions,
    *,
    on_progress: OnProgress,
    on_notice: Callable[[str], None],
) -> _Judged:
    plan = make_plan(opened.merged.base, list(zip(opened.adapters, weights, strict=True)), opened.merged)
    settings = ScanSettings()
    work: list[Check | Compare] = [*plan.checks, *plan.compares]
    tasks = [_task(each, settings) for each in work]
    outcomes = run_planned(
        opened.pairing,
        tasks,
        settings,
        options,
        executor=executor_for(_WORKER_FUNCTION, settings, options),
        on_progress=on_progress,
        on_notice=on_notice,
        stage="verifying",
        purpose=f"verify {hashlib.sha256(repr(plan).encode()).hexdigest()}",
    )
    return _assembled(opened, weights, plan, outcomes)


def _task(what: Check | Compare, settings: ScanSettings) -> Task:
    size = what.merged.tensor.num_bytes if isinstance(what, Check) else what.estimated_bytes // 8
    return Task(
        key=f"{'module' if isinstance(what, Check) else 'tensor'} {what.name}",
        payload=(what, settings),
        estimated_bytes=what.estimated_bytes,
        weight=float(max(1, size)),
    )


def _assembled(
    opened: _Opened, weights: tuple[float, ...], plan: VerifyPlan, outcomes: Sequence[Outcome]
) -> _Judged:
    num_checks = len(plan.checks)
    squares: list[tuple[float, float]] = []
    modules = [
        _module(check, o, squares) for check, o in zip(plan.checks, outcomes[:num_checks], strict=True)
    ]
    modules += plan.settled
    others = list(plan.others)
    num_equal = 0
    for compare, outcome in zip(plan.compares, outcomes[num_checks:], strict=True):
        found = _other(compare, outcome)
        num_equal += found is None
        others += [] if found is None else [found]
    changed = any(module.num_changed or module.status == "missing" for module in modules)
    report = VerifyReport(
        base=opened.merged.pairing.base,
        adapters=tuple(
            AdapterUse(name=pair.pairing.tuned, weight=weight)
            for pair, weight in zip(opened.adapters, weights, strict=True)
        ),
        merged=opened.merged.pairing.tuned,
        verdict=verdict_of(modules),
        modules=tuple(modules),
        others=tuple(others),
        num_equal=num_equal,
        equals_base=not changed and all(each.expected for each in others),
        complete=plan.complete,
        findings=(),
        environment=environment(),
    )
    if not plan.complete and report.verdict == "applied":
        report = replace(report, verdict="open")
    total, error = (sum(column) for column in zip(*squares, strict=True)) if squares else (0.0, 0.0)
    fit = BaseFit(
        name=report.base,
        num_applied=report.counts["applied"],
        num_modules=len(modules),
        num_equal=num_equal,
        num_untouched=num_equal + len(others),
        relative_residual=(error / total) ** 0.5 if total > 0 else None,
    )
    given = opened.pairing.findings
    return _Judged(report=replace(report, findings=report_findings(report, given)), fit=fit, given=given)


def _module(check: Check, outcome: Outcome, squares: list[tuple[float, float]]) -> ModuleCheck:
    """The record of one check, also where its worker gave none."""
    if outcome.record is None:
        return replace(check.open(), reason=outcome.reason or "no result")
    record = dict(outcome.record)
    square, error = record.pop("square"), record.pop("error_square")
    if square is not None:
        squares.append((square, error))
    return decode(ModuleCheck, record)


def _other(compare: Compare, outcome: Outcome) -> OtherTensor | None:
    """What to report of one comparison; None where both sides are equal."""
    if outcome.record is None:
        return OtherTensor(name=compare.name, status="open", reason=outcome.reason or "no result")
    status, change = outcome.record["status"], outcome.record["relative_change"]
    if status == "equal":
        return None
    reason = "no adapter changes it" if status == "changed" else "it is stored in a format that is not read"
    return OtherTensor(name=compare.name, status=status, relative_change=change, reason=reason)


def verdict_of(modules: Sequence[ModuleCheck]) -> Verdict:
    """One word for all modules; see :class:`VerifyReport`."""
    statuses = {module.status for module in modules}
    if statuses & FAILED:
        held = {"applied", "wrong scale", "wrong sign", "transposed"}
        return "partly" if statuses & held else "not applied"
    return "applied" if statuses == {"applied"} else "open"
