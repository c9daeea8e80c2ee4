"""``inspect``: one adapter or many, without their base."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.adapters.alone import open_alone
from intruscope.errors import IntruscopeError, ResourceExhausted, UsageError
from intruscope.inspect.duplicates import find_duplicates
from intruscope.inspect.findings import adapter_findings
from intruscope.inspect.measure import measure
from intruscope.inspect.records import AdapterFailure, InspectedAdapter, InspectReport, UninspectedModule
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.adapters.alone import AloneAdapter
    from intruscope.adapters.opening import ModelLike


def inspect(
    *adapters: ModelLike,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    on_progress: OnProgress = ignore_progress,
) -> InspectReport:
    """Look into adapters on their own: spectra, ranks, scaling, duplicates, and what looks wrong.

    No base is read. One matrix for each core is in memory at a time, as its factors.

    Args:
        *adapters: Paths, hub ids, PeftModels in memory, or opened adapters.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: Alpha of the adapters that do not store it.
        on_progress: Called before the first matrix and after each.

    Returns:
        The report. Among several adapters, one that cannot be read has its error in place of its figures.

    Raises:
        UsageError: no adapter is given.
        IntruscopeError: the only adapter cannot be read; see :mod:`intruscope.errors`.
    """
    if not adapters:
        raise UsageError("no adapter is given", remedy="name at least one")
    is_only = len(adapters) == 1
    opened: list[AloneAdapter | None] = []
    failures: dict[int, InspectedAdapter] = {}
    for index, adapter in enumerate(adapters):
        try:
            opened.append(_opened(adapter, allow_pickle, lora_alpha, is_only=is_only))
        except IntruscopeError as error:
            failures[index] = _failed(adapter, error, is_only=is_only)
            opened.append(None)
    report = _Reporter(on_progress, sum(_count(alone) for alone in opened if alone is not None))
    found: list[InspectedAdapter] = []
    for index, alone in enumerate(opened):
        if alone is None:
            found.append(failures[index])
            continue
        try:
            found.append(_inspected(alone, report.step))
        except IntruscopeError as error:
            found.append(_failed(adapters[index], error, is_only=is_only))
            opened[index] = None
    report.finish()
    return InspectReport(adapters=tuple(found), duplicates=find_duplicates(found, opened))


class _Reporter:
    """Counts the matrices of all adapters."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0
        self._tell("")

    def step(self, name: str) -> None:
        """One more is done."""
        self._done += 1
        self._tell(name)

    def finish(self) -> None:
        """Count what an adapter that failed half-way left undone."""
        if self._done < self._total:
            self._done = self._total
            self._tell("")

    def _tell(self, name: str) -> None:
        self._on_progress(
            Progress(stage="inspecting", done=self._done, total=self._total, unit="matrices", item=name)
        )


def _count(alone: AloneAdapter) -> int:
    return len(alone.pairs) + sum(module.factors is not None for module in alone.unread)


def _opened(
    adapter: ModelLike, allow_pickle: bool, lora_alpha: float | None, *, is_only: bool
) -> AloneAdapter:
    try:
        return open_alone(adapter, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    except UsageError:
        # Among several adapters alpha is for those that do not store it.
        if is_only or lora_alpha is None:
            raise
        return open_alone(adapter, allow_pickle=allow_pickle)


def _failed(adapter: ModelLike, error: IntruscopeError, *, is_only: bool) -> InspectedAdapter:
    if is_only or isinstance(error, ResourceExhausted):
        raise error
    return InspectedAdapter(
        name=str(adapter) if isinstance(adapter, str) or hasattr(adapter, "__fspath__") else _title(adapter),
        kind=None,
        base=None,
        rank=None,
        alpha=None,
        use_rslora=False,
        num_parameters=0,
        frobenius_norm=None,
        modules=(),
        unread=(),
        fingerprint=None,
        findings=(),
        failure=AdapterFailure(id=error.id, exit_code=error.exit_code, message=str(error)),
    )


def _title(adapter: object) -> str:
    return f"{type(adapter).__name__} in memory"


def _inspected(alone: AloneAdapter, on_module: Callable[[str], None]) -> InspectedAdapter:
    measured = measure(alone, on_module=on_module)
    source = alone.source
    config = source.config if source.kind.alpha_name else None
    norms = [module.frobenius_norm for module in measured.modules if module.part == "update"]
    known = [norm for norm in norms if norm is not None]
    return InspectedAdapter(
        name=source.full_name,
        kind=source.kind.title,
        base=source.base_name,
        rank=None if config is None else config.rank,
        alpha=source.lora_alpha if config is None else config.alpha,
        use_rslora=bool(config is not None and config.options.get("use_rslora")),
        num_parameters=sum(math.prod(tensor.shape) for tensor in source.tensors.values()),
        frobenius_norm=math.hypot(*known) if known and len(known) == len(norms) else None,
        modules=measured.modules,
        unread=tuple(
            UninspectedModule(
                name=module.name,
                reason=module.reason,
                num_parameters=sum(math.prod(tensor.shape) for tensor in module.tensors),
            )
            for module in alone.unread
        ),
        fingerprint=measured.fingerprint,
        findings=(*measured.findings, *adapter_findings(alone, measured.modules)),
    )
