"""The files of a repaired adapter: new factors, edited modules, and the config that goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.export import (
    WEIGHTS_NAME,
    compact_config,
    config_bytes,
    plain_config,
    write_adapter_weights,
)
from intruscope.adapters.folder import CONFIG_NAME, open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.adapters.updates import SavedUpdate, TokensUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.repair.convert import converted_config
from intruscope.repair.dense import edited_tokens, edited_whole
from intruscope.repair.factors import low_rank_modules, new_factors
from intruscope.repair.ranks import is_plain
from intruscope.weights.source import ModelSource
from intruscope.writing.folder import damaged
from intruscope.writing.lora import write_lora

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.records import RepairRecord
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.views import TensorView
    from intruscope.writing.folder import OutputFolder


def write_adapter(plan: RepairRecord, adapter: AdapterSource, target: OutputFolder) -> None:
    """Write the weights and, if it changes, the config.

    Args:
        plan: The plan of an adapter.
        adapter: The original.
        target: Where to write.

    Raises:
        UnsupportedFormat: the adapter cannot hold an edit in its own form.
        MalformedInput: an input changed since planning.
        OSError: there is no room.
    """
    if plan.is_copy:
        _copy(adapter, target)
        return
    replaced = {**_new_factors(plan, adapter), **_new_saved(plan, adapter)}
    _move_vectors(plan, adapter, replaced)
    if plan.lora is not None:
        tensors = plan.lora.tensors()
        for key, tensor in plan.lora.saved.tensors.items():
            tensors[key] = replaced.get(tensor.name, tensor)
        write_lora(converted_config(plan.lora, adapter), tensors, target)
        return
    target.write(WEIGHTS_NAME, lambda file: write_adapter_weights(file, adapter, replaced))
    config = _new_config(plan, adapter)
    if config is not None:
        target.write(CONFIG_NAME, config_bytes(config))


def _copy(adapter: AdapterSource, target: OutputFolder) -> None:
    """Write the adapter as it is; its config is copied with the other files, if there are any."""
    if adapter.path is not None:
        target.copy(adapter.path, adapter.path.name)
        return
    target.write(WEIGHTS_NAME, lambda file: write_adapter_weights(file, adapter, {}))
    if adapter.config is not None:
        target.write(CONFIG_NAME, config_bytes(adapter.config.raw))


def check_adapter(plan: RepairRecord, folder: Path) -> None:
    """Open a written adapter: it must change the same matrices as the original.

    Raises:
        MalformedInput: it does not, for example after a disk error.
    """
    original = plan.survey.tuned
    assert not isinstance(original, ModelSource)
    is_pickle = plan.is_copy and original.path is not None and original.path.suffix != ".safetensors"
    written = open_adapter(folder, allow_pickle=is_pickle, lora_alpha=original.lora_alpha)
    names = [pair.name for pair in pair_adapter(plan.survey.base, written).pairs]
    if names != [pair.name for pair in plan.survey.pairing.pairs]:
        raise damaged(written.on_disk.name)


def _new_factors(plan: RepairRecord, adapter: AdapterSource) -> dict[str, torch.Tensor]:
    if plan.lora is not None:
        return {}
    ranks = {rank.name: rank for rank in plan.modules}
    plain = is_plain(plan.modules, plan.rank, compact=plan.compact)
    replaced: dict[str, torch.Tensor] = {}
    for module in low_rank_modules(plan.survey.base, adapter, plan.survey.pairing):
        rank = ranks[module.name]
        if rank.touched:
            grown = plan.compact and rank.after > rank.before
            scaling = 1.0 if plain or grown else module.scaling
            made = new_factors(module, adapter, plan.changed, rank=rank.after, scaling=scaling)
            replaced.update(made.tensors)
    return replaced


def _new_saved(plan: RepairRecord, adapter: AdapterSource) -> dict[str, torch.Tensor]:
    """Modules that are saved whole, and trained words."""
    changed, replaced = plan.changed, {}
    places: dict[str, list[tuple[TensorView, MatrixPair]]] = {}
    for pair in plan.survey.pairing.pairs:
        if pair.name not in changed:
            continue
        if isinstance(pair.update, SavedUpdate):
            places.setdefault(pair.update.tuned.tensor.name, []).append((pair.update.tuned, pair))
        elif isinstance(pair.update, TokensUpdate):
            replaced[pair.update.rows.name] = edited_tokens(pair, changed[pair.name])
    for key, found in places.items():
        replaced[key] = edited_whole(adapter.tensors[key], found, changed)
    return replaced


def _move_vectors(plan: RepairRecord, adapter: AdapterSource, replaced: dict[str, torch.Tensor]) -> None:
    """Biases and norms, where an edit is of these too."""
    changed = plan.changed
    for vector in trained_vectors(adapter, plan.survey.base):
        edit = changed.get(vector.target or "")
        if edit is None:
            continue
        key = vector.tensor.name
        numbers = replaced[key] if key in replaced else vector.tensor.read()
        if vector.module is not None:  # it is added to the base's
            new = numbers.double() * edit.update_scale
        else:
            new = edit.applied(plan.survey.base.tensors[str(vector.target)].read(), numbers)
        replaced[key] = new.to(numbers.dtype)


def _new_config(plan: RepairRecord, adapter: AdapterSource) -> dict[str, Any] | None:
    """The changed config; None where the original's bytes serve."""
    unchanged = dict(adapter.config.raw) if adapter.path is None and adapter.config is not None else None
    if is_plain(plan.modules, plan.rank, compact=plan.compact):
        assert plan.stored_rank is not None
        return plain_config(adapter, plan.stored_rank)
    if not plan.compact:
        return unchanged
    keys = {m.name: m.pattern_key for m in low_rank_modules(plan.survey.base, adapter, plan.survey.pairing)}
    grown = {keys[m.name]: m.after for m in plan.modules if m.after > m.before}
    return compact_config(adapter, grown) if grown else unchanged
