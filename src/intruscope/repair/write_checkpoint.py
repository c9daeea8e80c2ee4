"""The files of a repaired full checkpoint: the original's, with the edited tensors' bytes replaced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import UnsupportedFormat, printable
from intruscope.repair.changed import tensor_twins
from intruscope.repair.dense import edited_whole, merged_whole
from intruscope.repair.factors import low_rank_modules
from intruscope.weights.layout import matrix_kind
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.source import ModelSource
from intruscope.weights.views import TensorView
from intruscope.weights.written import HashedFile, copy_with_replacements

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.plan import RepairPlan
    from intruscope.repair.target import Target
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.stored import StoredTensor


def write_checkpoint(plan: RepairPlan, source: ModelSource, target: Target) -> None:
    """Write all weight files and their index.

    Args:
        plan: Of a checkpoint.
        source: The model whose files are written anew: the tuned one, or the base of an adapter.
        target: Where to.

    Raises:
        MalformedInput: an input changed since planning.
        OSError: no room.
    """
    renew = _renewed_tensors(plan, source)
    for record in plan.survey.pairing.inputs:
        index = Path(str(record["path"]))
        if index.name.endswith(".index.json") and index.parent == _folder(source):
            target.copy(index, index.name)
    by_file: dict[Path, list[StoredTensor]] = {}
    for tensor in source.tensors.values():
        by_file.setdefault(tensor.path, []).append(tensor)
    for path, tensors in sorted(by_file.items()):
        if not any(tensor.name in renew for tensor in tensors):
            target.copy(path, path.name)
            continue

        def replacement(tensor: StoredTensor) -> torch.Tensor | None:
            make = renew.get(tensor.name)
            return None if make is None else make()

        def write(file: HashedFile, path: Path = path, tensors: list[StoredTensor] = tensors) -> None:
            copy_with_replacements(file, path, tensors, replacement)

        target.write(path.name, write)


def _folder(source: ModelSource) -> Path:
    return source.path if source.path.is_dir() else source.path.parent


def _renewed_tensors(plan: RepairPlan, source: ModelSource) -> dict[str, Callable[[], torch.Tensor]]:
    """How to make each stored tensor that is not copied."""
    changed = plan.changed
    renew: dict[str, Callable[[], torch.Tensor]] = {}
    if plan.merges:
        renew = _merged_tensors(plan, source)
    else:
        places: dict[str, list[tuple[TensorView, MatrixPair]]] = {}
        for pair in plan.survey.pairing.pairs:
            if pair.name in changed and isinstance(pair.update, CheckpointUpdate):
                places.setdefault(pair.update.tuned.tensor.name, []).append((pair.update.tuned, pair))
        for name, found in places.items():
            shared = next((view.name for view, _ in found if view.is_stand_in), None)
            if shared is not None:
                raise UnsupportedFormat(
                    f"{printable(shared)} shares its matrix with another module and cannot be repaired alone",
                    remedy="leave it out with --which, or untie the two before",
                    file=source.path,
                    tensor=name,
                )
            renew[name] = _later(edited_whole, source.tensors[name], found, changed)
        twins = tensor_twins(plan.survey.base, source, plan.survey.pairing)
        for name, twin in twins.items():
            if name in changed:
                renew[twin.name] = _later(_moved, plan, name, twin)
    return {**renew, **_tied(source, renew)}


def _later(make: Callable[..., torch.Tensor], *arguments: Any) -> Callable[[], torch.Tensor]:
    return lambda: make(*arguments)


def _moved(plan: RepairPlan, name: str, twin: StoredTensor) -> torch.Tensor:
    numbers = twin.read()
    return plan.changed[name].applied(plan.survey.base.tensors[name].read(), numbers).to(numbers.dtype)


def _merged_tensors(plan: RepairPlan, source: ModelSource) -> dict[str, Callable[[], torch.Tensor]]:
    adapter, changed = plan.survey.tuned, plan.changed
    assert not isinstance(adapter, ModelSource)
    grouped: dict[str, list[MatrixPair]] = {}
    for pair in plan.survey.pairing.pairs:
        assert isinstance(pair.base, TensorView)
        grouped.setdefault(pair.base.tensor.name, []).append(pair)
    renew = {
        name: _later(merged_whole, source.tensors[name], pairs, changed) for name, pairs in grouped.items()
    }
    scalings = {
        module.name: module.scaling
        for module in (low_rank_modules(source, adapter, plan.survey.pairing) if _has_biases(adapter) else ())
    }
    for vector in trained_vectors(adapter, source):
        assert vector.target is not None
        renew[vector.target] = _later(_merged_vector, plan, vector.target, vector.tensor,
                                      None if vector.module is None else scalings[vector.module])  # fmt: skip
    return renew


def _has_biases(adapter: AdapterSource) -> bool:
    return any(".lora_" in key and key.endswith(".bias") for key in adapter.tensors)


def _merged_vector(
    plan: RepairPlan, target: str, stored: StoredTensor, scaling: float | None
) -> torch.Tensor:
    base = plan.survey.base.tensors[target].read()
    numbers = stored.read().double()
    tuned = numbers if scaling is None else base.double() + scaling * numbers
    edit = plan.changed.get(target)
    return (tuned if edit is None else edit.applied(base, tuned)).to(base.dtype)


def _tied(
    source: ModelSource, renew: dict[str, Callable[[], torch.Tensor]]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Copies of a renewed tensor under another name, where the config ties embedding and head."""
    tied: dict[str, Callable[[], torch.Tensor]] = {}
    if source.config.get("tie_word_embeddings", True) is False:
        return tied
    import torch

    for name, make in renew.items():
        tensor, kind = source.tensors[name], _kind(name)
        if kind == "other":
            continue
        for other in source.tensors.values():
            twin = {kind, _kind(other.name)} == {"embedding", "head"} and other.name not in renew
            alike = other.shape == tensor.shape and other.dtype == tensor.dtype
            if twin and alike and torch.equal(other.read(), tensor.read()):
                tied[other.name] = make
    return tied


def _kind(name: str) -> str:
    module = name.removesuffix(".weight")
    return matrix_kind(module, in_block=False) if name.endswith(".weight") else "other"
