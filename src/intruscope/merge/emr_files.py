"""The files of EMR-Merging: the unified update once, and a folder with mask and rescaler for each task.

:mod:`intruscope.adapters.kinds.emr` reads them.

Shape suffixes: K and L sizes of the bases.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from intruscope.adapters.export import WEIGHTS_NAME, config_bytes
from intruscope.adapters.folder import CONFIG_NAME, SHARED_ID, open_adapter
from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.adapters.kinds.emr import PEFT_TYPE, UNIFIED_NAME, packed
from intruscope.errors import UsageError
from intruscope.linalg.forms import dense_of
from intruscope.merge.card import finish
from intruscope.merge.findings import MANIFEST_NAME
from intruscope.merge.gather import load_form
from intruscope.merge.records import EmrFigures
from intruscope.merge.rules import weights_of
from intruscope.progress import Progress
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import StoredTensor
from intruscope.weights.written import num_bytes, tensor_bytes, write_safetensors
from intruscope.writing.folder import README, output_folder
from intruscope.writing.naming import adapter_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch
    from torch import Tensor

    from intruscope.merge.compute import Merger
    from intruscope.merge.gather import Member, Row
    from intruscope.merge.plan import MergePlan
    from intruscope.merge.records import MergeReport
    from intruscope.progress import OnProgress
    from intruscope.writing.folder import OutputFolder

_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_BEYOND_THE_TENSORS = 1 << 20
_OWN_NAMES = frozenset({"", README, MANIFEST_NAME, UNIFIED_NAME, WEIGHTS_NAME, CONFIG_NAME})


@dataclass(frozen=True, kw_only=True)
class _Computed(StoredTensor):
    """A tensor that is computed when it is written, so that only one is in memory."""

    make: Callable[[], Tensor] = field(repr=False)

    def read_leading(self, first: int, count: int) -> Tensor:
        """Some slices of it."""
        return self.make()[first : first + count]

    def raw(self) -> Iterator[bytearray]:
        """Its bytes."""
        yield bytearray(tensor_bytes(self.make()))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """The unified update as it is written, and how to find each mask; ``counts`` are the entries it keeps."""

    unified: dict[str, StoredTensor | Tensor]
    masks: Callable[[int, Path], dict[str, StoredTensor | Tensor]]
    counts: list[int]
    num_entries: int


def write_emr(plan: MergePlan, merger: Merger, out: Path, on_progress: OnProgress) -> MergeReport:
    """Write the files for all tasks; see :meth:`intruscope.merge.plan.MergePlan.apply`."""
    folders = folder_names(plan.report.labels)
    merger.prepare()
    assert merger.rescalers is not None
    if plan.space == "dense":
        parts = _dense_parts(plan, merger)
    else:
        parts = _parts_in_bases(plan, merger, on_progress)
    identity = _identity(plan)
    unified_bytes = sum(map(num_bytes, parts.unified.values()))
    mask_bytes = len(folders) * sum(math.ceil(size / 8) for size in _sizes(parts.unified))
    sources = (plan.tunes.base, *(member.source for member in plan.members))
    size = _BEYOND_THE_TENSORS + unified_bytes + mask_bytes
    with output_folder(out, sources, num_bytes=size, on_progress=on_progress) as target:
        metadata = {"format": "pt", SHARED_ID: identity}
        target.write(UNIFIED_NAME, lambda file: write_safetensors(file, parts.unified, metadata))
        for task, (member, folder) in enumerate(zip(plan.members, folders, strict=True)):
            _write_task(plan, merger, parts, target, task, member, folder, identity)
        densities = tuple(count / max(parts.num_entries, 1) for count in parts.counts)
        report = replace(
            plan.report,
            emr=EmrFigures(
                rescalers=merger.rescalers,
                mask_densities=densities,
                unified_bytes=unified_bytes,
                mask_bytes=mask_bytes,
                input_bytes=sum(map(_input_bytes, plan.members)),
            ),
        )
        return finish(target, report, out)


def folder_names(labels: tuple[str, ...]) -> tuple[str, ...]:
    """A folder for each task: its label, without what may not be in a file's name or is one of ours."""
    names: list[str] = []
    for label in labels:
        plain = re.sub(r"[^\w.-]+", "-", label).strip(".-")
        plain = f"task-{plain}" if plain in _OWN_NAMES else plain
        number = sum(name == plain or name.rpartition("-")[0] == plain for name in names)
        names.append(f"{plain}-{number + 1}" if plain in names else plain)
    return tuple(names)


def _parts_in_bases(plan: MergePlan, merger: Merger, on_progress: OnProgress) -> _Parts:
    """Compute everything that a space with bases stores; it is small, so all of it is kept."""
    dtype = _dtype(plan)
    unified: dict[str, StoredTensor | Tensor] = {}
    masks: list[dict[str, StoredTensor | Tensor]] = [{} for _ in plan.members]
    counts, total = [0] * len(masks), 0
    for done, row in enumerate(plan.rows):
        on_progress(Progress(stage="merging", done=done, total=len(plan.rows), unit="modules", item=row.name))
        space, found = merger.unified(row)
        unified[f"{row.name}.emr_unified"] = _checked(found.unified.to(dtype), dtype)
        for role, basis in (("left", space.left_OK), ("right", space.right_KI)):
            if basis is not None:
                unified[f"{row.name}.emr_{role}"] = basis.to(dtype).contiguous()
        for task, mask in enumerate(found.masks):
            masks[task][f"{row.name}.emr_mask"] = packed(mask)
            counts[task] += int(mask.sum())
        total += found.unified.numel()
    return _Parts(unified=unified, masks=lambda task, _: masks[task], counts=counts, num_entries=total)


def _dense_parts(plan: MergePlan, merger: Merger) -> _Parts:
    """Of whole updates: each matrix is computed when it is written, and again for each mask."""
    asked = plan.report.settings
    dtype = _dtype(plan)
    weights = weights_of(asked.options, len(plan.members))
    counts = [0] * len(plan.members)

    def unified(row: Row) -> Tensor:
        return _checked(merger.unified(row)[1].unified.to(dtype), dtype)

    def mask(row: Row, task: int, stored: StoredTensor) -> Tensor:
        delta = dense_of(load_form(row.targets[task], row.view, plan.members[task].label))
        found = weights[task] * delta * stored.read().double() > 0.0
        counts[task] += int(found.sum())
        return packed(found)

    def masks(task: int, written: Path) -> dict[str, StoredTensor | Tensor]:
        stored = read_header(written)
        return {
            f"{row.name}.emr_mask": _Computed(
                name=row.name,
                path=None,
                dtype="U8",
                shape=(math.ceil(math.prod(row.shape) / 8),),
                make=partial(mask, row, task, stored[f"{row.name}.emr_unified"]),
            )
            for row in plan.rows
        }

    return _Parts(
        unified={
            f"{row.name}.emr_unified": _Computed(
                name=row.name,
                path=None,
                dtype=_TYPES[asked.dtype],
                shape=row.shape,
                make=partial(unified, row),
            )
            for row in plan.rows
        },
        masks=masks,
        counts=counts,
        num_entries=sum(math.prod(row.shape) for row in plan.rows),
    )


def _dtype(plan: MergePlan) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, plan.report.settings.dtype)
    return found


def _checked(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    if not bool(numbers.isfinite().all()):
        name = str(dtype).removeprefix("torch.")
        raise UsageError(f"the unified update overflows {name}", remedy="use --dtype float32")
    return numbers.contiguous()


def _write_task(
    plan: MergePlan,
    merger: Merger,
    parts: _Parts,
    target: OutputFolder,
    task: int,
    member: Member,
    folder: str,
    identity: str,
) -> None:
    assert merger.rescalers is not None
    tensors = dict(parts.masks(task, target.path / UNIFIED_NAME))
    for name in plan.vectors:
        before = plan.tunes.base.tensors[name].read()
        change = merger.unified_vector(name).part(task, merger.rescalers[task])
        tensors[name] = (before.double() + change.reshape(before.shape)).to(before.dtype)
    own = {name: target_module.module for name, target_module in member.saved.items()}
    heads = {*own.values(), *(name for name in member.heads if name not in own)}
    for key, tensor in member.source.tensors.items():
        if key.removeprefix(PEFT_PREFIX).rpartition(".")[0] in heads:
            tensors[key] = tensor
    names = member.names if member.names.is_known else adapter_names(plan.tunes.base, member.source)
    base = plan.tunes.base
    config: dict[str, Any] = {
        "peft_type": PEFT_TYPE,
        "task_type": names.task,
        "base_model_name_or_path": base.name.partition("@")[0] if base.revision else base.name,
        "revision": base.revision,
        "modules_to_save": sorted(heads) or None,
        "rescaler": merger.rescalers[task],
        SHARED_ID: identity,
    }
    target.write(f"{folder}/{WEIGHTS_NAME}", lambda file: write_safetensors(file, tensors, {"format": "pt"}))
    target.write(f"{folder}/{CONFIG_NAME}", config_bytes(config))
    open_adapter(target.path / folder)


def _identity(plan: MergePlan) -> str:
    """Tells files of different merges apart."""
    inputs = [record for m in plan.members for record in m.opened.pairing.inputs]
    given = json.dumps([plan.report.to_json(), inputs], sort_keys=True, default=str)
    return hashlib.sha256(given.encode()).hexdigest()[:32]


def _sizes(unified: dict[str, StoredTensor | Tensor]) -> list[int]:
    return [math.prod(tensor.shape) for key, tensor in unified.items() if key.endswith(".emr_unified")]


def _input_bytes(member: Member) -> int:
    """What stores a fine-tune's own matrices: its adapter, or the changed matrices of a checkpoint."""
    if not isinstance(member.source, ModelSource):
        return sum(tensor.num_bytes for tensor in member.source.tensors.values())
    return sum(
        pair.base.tensor.num_bytes // max(len(target.pairs), 1)
        for target in member.modules.values()
        for pair in target.pairs
    )
