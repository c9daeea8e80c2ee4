"""The files of a merge: an adapter or a checkpoint; those of EMR-Merging are in ``emr_files.py``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.errors import UsageError, printable
from intruscope.linalg.forms import dense_of
from intruscope.merge.card import finish
from intruscope.merge.compute import Merger, factors_of, total_error
from intruscope.merge.emr_files import write_emr
from intruscope.merge.findings import MANIFEST_NAME
from intruscope.progress import Progress, ignore_progress
from intruscope.weights.written import num_bytes
from intruscope.writing.checkpoint import write_checkpoint
from intruscope.writing.folder import README, output_folder
from intruscope.writing.lora import LoraAdapter, write_lora
from intruscope.writing.naming import AdapterNames
from intruscope.writing.rest import Saved, find_rest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from intruscope.merge.compute import Factors, Measured
    from intruscope.merge.gather import Row
    from intruscope.merge.plan import MergePlan
    from intruscope.merge.records import MergedModule, MergeReport
    from intruscope.progress import OnProgress
    from intruscope.writing.checkpoint import NewTensors
    from intruscope.writing.modules import TargetModule

_BEYOND_THE_FACTORS = 1 << 20


def write_merge(plan: MergePlan, out: Path, *, on_progress: OnProgress) -> MergeReport:
    """See :meth:`intruscope.merge.plan.MergePlan.apply`."""
    if not plan.rows and not plan.vectors:
        raise UsageError(
            "there is nothing to merge: no fine-tune changes a matrix outside of its heads",
            remedy="check that these are fine-tunes of this base",
        )
    merger = Merger(
        plan.tunes.base.tensors,
        plan.members,
        plan.rows,
        plan.vectors,
        plan.report.settings,
        space=plan.space,
        on_progress=on_progress,
    )
    write = {"adapter": _write_adapter, "checkpoint": _write_checkpoint, "emr": write_emr}[plan.report.writes]
    return write(plan, merger, out, on_progress)


def _write_adapter(plan: MergePlan, merger: Merger, out: Path, on_progress: OnProgress) -> MergeReport:
    settings = plan.report.settings
    merger.prepare()
    found: dict[str, tuple[Measured, Factors | None]] = {}
    for done, row in enumerate(plan.rows):
        on_progress(Progress(stage="merging", done=done, total=len(plan.rows), unit="modules", item=row.name))
        form, measured = merger.merged(row)
        found[row.name] = measured, factors_of(form, settings.rank, settings.dtype, row.name)
    on_progress(Progress(stage="merging", done=len(plan.rows), total=len(plan.rows), unit="modules"))
    rows = [row for row in plan.rows if found[row.name][1] is not None]
    if not rows:
        raise _nothing_left()
    factors = {name: (each.up_OR, each.down_RI) for name, (_, each) in found.items() if each is not None}
    modules = tuple(row.first for row in rows)
    adapter = LoraAdapter(
        base=plan.tunes.base,
        names=_names(plan),
        modules=modules,
        others=[row.first.module for row in plan.rows if row.name not in factors],
        factors=factors,
        rank=max(up.shape[1] for up, _ in factors.values()),
        saved=_saved(plan, {module.module for module in modules}),
    )
    tensors = adapter.tensors()
    sources = (plan.tunes.base, *(member.source for member in plan.members))
    size = _BEYOND_THE_FACTORS + sum(map(num_bytes, tensors.values()))
    report = replace(
        plan.report,
        rank=adapter.rank,
        modules=tuple(_measured(module, *found[module.name]) for module in plan.report.modules),
        relative_error=total_error(
            [(each.error, measured.merged_norm) for measured, each in found.values() if each is not None]
        ),
    )
    with output_folder(out, sources, num_bytes=size, on_progress=on_progress) as target:
        write_lora(adapter.config(), tensors, target)
        return finish(target, report, out)


def _measured(module: MergedModule, measured: Measured, factors: Factors | None = None) -> MergedModule:
    return replace(
        module,
        update_norms=measured.update_norms,
        merged_norm=measured.merged_norm,
        smallest_gap=measured.smallest_gap,
        rank=None if factors is None else factors.up_OR.shape[1],
        relative_error=None if factors is None else factors.error / measured.merged_norm,
    )


def _nothing_left() -> UsageError:
    return UsageError(
        "there is nothing to write: the merged update is zero",
        remedy="check the fine-tunes (intruscope scan BASE TUNED) and the weights",
    )


def _names(plan: MergePlan) -> AdapterNames:
    """How the model names its parts: as the fine-tunes agree, with a task if all have the same."""
    tasks = {member.names.task for member in plan.members}
    if plan.kept is not None:
        tasks = {plan.kept.names.task}
    return AdapterNames(
        task=tasks.pop() if len(tasks) == 1 else None,
        is_known=all(member.names.is_known for member in plan.members),
        modules=next((m.names.modules for m in plan.members if m.names.modules), frozenset()),
    )


def _saved(plan: MergePlan, adapted: set[str]) -> Saved:
    """The heads of the fine-tune that was chosen, and nothing else of it.

    Raises:
        UsageError: one cannot be stored beside the factors.
    """
    kept = plan.kept
    if kept is None or not kept.heads:
        return Saved(modules=(), biases=False, tensors={})
    rest, saved = find_rest(
        plan.tunes.base,
        kept.source,
        kept.opened.pairing,
        modules=list(kept.saved.values()),
        adapted=adapted,
        norms=dict.fromkeys(kept.saved, 1.0),  # whether they changed is of no matter: all are kept
        names=kept.names,
        save=True,
    )
    own = {name: target.module for name, target in kept.saved.items()}
    wanted = {own.get(name, name) for name in kept.heads}
    modules = tuple(name for name in saved.modules if name in wanted)
    heads = set(kept.heads)
    lost = next((e for e in rest if e.status == "lost" and not heads.isdisjoint(_names_of(e.name))), None)
    if lost is not None:
        raise UsageError(
            f"an adapter cannot hold {printable(lost.name)} of {printable(kept.label)}: {lost.reason}",
            remedy="use --heads none, or write a checkpoint with --merged",
        )
    starts = tuple(f"{PEFT_PREFIX}{name}." for name in modules)
    tensors = {key: tensor for key, tensor in saved.tensors.items() if key.startswith(starts)}
    return Saved(modules=modules, biases=False, tensors=tensors)


def _names_of(name: str) -> tuple[str, str]:
    """A module's name, or that of the module that a tensor belongs to."""
    return name, name.rpartition(".")[0]


def _write_checkpoint(plan: MergePlan, merger: Merger, out: Path, on_progress: OnProgress) -> MergeReport:
    base = plan.tunes.base
    merger.prepare()
    found: dict[str, Measured] = {}
    grouped: dict[str, list[Row]] = {}
    for row in plan.rows:
        grouped.setdefault(row.view.tensor.name, []).append(row)

    def merged_tensor(name: str, rows: list[Row]) -> Tensor:
        whole = base.tensors[name].read()
        for row in rows:
            on_progress(
                Progress(
                    stage="merging", done=len(found), total=len(plan.rows), unit="modules", item=row.name
                )
            )
            form, found[row.name] = merger.merged(row)
            row.view.place(row.view.load().double() + dense_of(form), whole)
        _check_range(whole, name)
        return whole

    def merged_vector(name: str) -> Tensor:
        before = base.tensors[name].read()
        whole = (before.double() + merger.merged_vector(name).reshape(before.shape)).to(before.dtype)
        _check_range(whole, name)
        return whole

    new: NewTensors = {name: partial(merged_tensor, name, rows) for name, rows in grouped.items()}
    new |= {name: partial(merged_vector, name) for name in plan.vectors}
    new |= _kept_tensors(plan)
    sources = (base, *(member.source for member in plan.members))
    size = sum(tensor.num_bytes for tensor in base.tensors.values())
    # Modules are merged while they are written, and progress counts them.
    with output_folder(out, sources, num_bytes=size, on_progress=ignore_progress) as target:
        write_checkpoint(base, new, target)
        on_progress(Progress(stage="merging", done=len(found), total=len(plan.rows), unit="modules"))
        if found and not any(measured.merged_norm for measured in found.values()) and not plan.vectors:
            raise _nothing_left()
        if base.path is not None:
            single = "config.json" if base.path.is_file() else None
            target.copy_companions(
                base.folder, base.weight_files, single=single, skip={README, MANIFEST_NAME}
            )
        modules = tuple(_measured(module, found[module.name]) for module in plan.report.modules)
        return finish(target, replace(plan.report, modules=modules), out)


def _kept_tensors(plan: MergePlan) -> NewTensors:
    """The heads of the fine-tune that was chosen, in the base's tensors."""
    kept = plan.kept
    if kept is None:
        return {}

    def whole(targets: list[TargetModule], name: str) -> Tensor:
        made = plan.tunes.base.tensors[name].read()
        for target in targets:
            for pair in target.pairs:
                pair.base.place(pair.load_float64()[1], made)
        return made

    new: NewTensors = {}
    grouped: dict[str, list[TargetModule]] = {}
    for target in kept.saved.values():
        grouped.setdefault(target.whole.base.tensor.name, []).append(target)
    for name, targets in grouped.items():
        new[name] = partial(whole, targets, name)
    for name, vector in kept.saved_vectors.items():
        new[name] = partial(_replaced, plan.tunes.base.tensors[name].read, vector.tensor.read)
    return new


def _replaced(before: Any, after: Any) -> Tensor:
    numbers: Tensor = after().to(before().dtype)
    return numbers


def _check_range(whole: Tensor, name: str) -> None:
    if not bool(whole.isfinite().all()):
        raise UsageError(
            f"the merged {printable(name)} overflows the base's data type, {str(whole.dtype)[6:]}",
            remedy="use a smaller --lambda, or save the base in bfloat16 or float32 first",
        )
