"""Writing a repaired model: the original's files with what was edited replaced, whole or not at all."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
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
from intruscope.errors import ResourceExhausted
from intruscope.repair.changed import tensor_twins
from intruscope.repair.dense import edited_tokens, edited_whole, merged_whole
from intruscope.repair.factors import LowRankModule, low_rank_modules, new_factors
from intruscope.repair.manifest import MANIFEST_NAME, manifest_bytes, readme_bytes
from intruscope.weights.companions import Companions, companions
from intruscope.weights.layout import matrix_kind
from intruscope.weights.output import check_output, whole_folder
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import read_whole_file
from intruscope.weights.views import TensorView
from intruscope.weights.written import HashedFile, copy_file, copy_with_replacements

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.plan import RepairPlan
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.stored import StoredTensor

_README = "README.md"
_MAX_README_BYTES = 16 << 20


def write_repair(plan: RepairPlan, out: Path | str, *, on_progress: Callable[[int, int], None]) -> Path:
    """See :meth:`intruscope.repair.plan.RepairPlan.apply`."""
    out = Path(out)
    check_output(out, _inputs(plan))
    checkpoint = _checkpoint(plan)
    adapter = plan.survey.tuned
    if checkpoint is not None:
        files = sorted({tensor.path for tensor in checkpoint.tensors.values()})
        home = checkpoint.path if checkpoint.path.is_dir() else None
    else:
        assert not isinstance(adapter, ModelSource)
        files = [adapter.path]
        home = None if Path(adapter.name).is_file() else adapter.path.parent
    _check_room(out, sum(file.stat().st_size for file in files))
    with whole_folder(out) as folder:
        target = _Target(folder, total=sum(file.stat().st_size for file in files), on_progress=on_progress)
        if checkpoint is not None:
            _write_checkpoint(plan, checkpoint, target)
        else:
            assert not isinstance(adapter, ModelSource)
            _write_adapter(plan, adapter, target)
        beside = _companions(home, files, checkpoint)
        readme = set() if plan.is_copy else {_README}
        for relative in map(str, beside.files):
            if relative not in {*target.written, *readme, MANIFEST_NAME}:
                target.copy((home or files[0].parent) / relative, relative)
        if readme:
            before = None if home is None else home / _README
            target.write(_README, partial(_write_readme, plan, before))
        _check_written(plan, folder, checkpoint)
        text = manifest_bytes(plan, files=target.written, left_out=beside.left_out)
        (folder / MANIFEST_NAME).write_bytes(text)
    return out


class _Target:
    """The folder while it is filled: every file is hashed, and counted for the progress."""

    def __init__(self, folder: Path, *, total: int, on_progress: Callable[[int, int], None]) -> None:
        self.folder = folder
        self.written: dict[str, dict[str, Any]] = {}
        self._total, self._done, self._on_progress = total, 0, on_progress

    def write(self, name: str, writer: Callable[[HashedFile], None]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with HashedFile(path) as file:
            writer(file)
        self.written[name] = {"bytes": file.num_bytes, "sha256": file.sha256}
        self._done += file.num_bytes
        self._on_progress(min(self._done, self._total), self._total)

    def copy(self, source: Path, name: str) -> None:
        self.write(name, lambda file: copy_file(file, source))


def _inputs(plan: RepairPlan) -> list[Path]:
    names = (plan.survey.base.name, plan.survey.tuned.name)
    files = [Path(str(record["path"])) for record in plan.survey.pairing.inputs]
    return [*(Path(name) for name in names if Path(name).is_dir()), *files]


def _checkpoint(plan: RepairPlan) -> ModelSource | None:
    """The checkpoint whose files are written anew; None where an adapter is."""
    if plan.writes == "adapter":
        return None
    return plan.survey.tuned if isinstance(plan.survey.tuned, ModelSource) else plan.survey.base


def _check_room(out: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < num_bytes:
        raise ResourceExhausted(
            f"needs about {num_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free there",
            remedy="free some space or choose another place",
            file=out,
        )


def _companions(home: Path | None, files: list[Path], checkpoint: ModelSource | None) -> Companions:
    if home is not None:
        return companions(home, weights=frozenset(file.name for file in files))
    # Of a single file the folder may be anything: only the config that was read goes with it.
    name = CONFIG_NAME if checkpoint is None else "config.json"
    return Companions((Path(name),) if (files[0].parent / name).is_file() else (), ())


# --- adapters --------------------------------------------------------------------------------------


def _write_adapter(plan: RepairPlan, adapter: AdapterSource, target: _Target) -> None:
    if plan.is_copy:
        target.copy(adapter.path, adapter.path.name)
        return
    replaced = {**_new_factors(plan, adapter), **_new_saved(plan, adapter)}
    _move_vectors(plan, adapter, replaced)
    target.write(WEIGHTS_NAME, lambda file: write_adapter_weights(file, adapter, replaced))
    config = _new_config(plan, adapter)
    if config is not None:
        target.write(CONFIG_NAME, lambda file: file.write(config_bytes(config)))


def _new_scaling(plan: RepairPlan, module: LowRankModule) -> float:
    """What the new config gives a module."""
    ranks = {rank.name: rank for rank in plan.modules}
    if _is_plain(plan):
        return 1.0
    return 1.0 if plan.compact and ranks[module.name].after > module.rank else module.scaling


def _is_plain(plan: RepairPlan) -> bool:
    """Whether all modules get one rank and a scaling of one."""
    if isinstance(plan.rank, int):
        return any(module.touched for module in plan.modules)
    return plan.rank == "exact" and not plan.compact and any(m.exact > m.before for m in plan.modules)


def _new_factors(plan: RepairPlan, adapter: AdapterSource) -> dict[str, torch.Tensor]:
    ranks = {rank.name: rank for rank in plan.modules}
    replaced: dict[str, torch.Tensor] = {}
    for module in low_rank_modules(plan.survey.base, adapter, plan.survey.pairing):
        rank = ranks[module.name]
        if rank.touched:
            made = new_factors(
                module, adapter, plan.changed, rank=rank.after, scaling=_new_scaling(plan, module)
            )
            replaced.update(made.tensors)
    return replaced


def _new_saved(plan: RepairPlan, adapter: AdapterSource) -> dict[str, torch.Tensor]:
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


def _move_vectors(plan: RepairPlan, adapter: AdapterSource, replaced: dict[str, torch.Tensor]) -> None:
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


def _new_config(plan: RepairPlan, adapter: AdapterSource) -> dict[str, Any] | None:
    """The changed config; None where the original's bytes serve."""
    if _is_plain(plan):
        assert plan.stored_rank is not None
        return plain_config(adapter, plan.stored_rank)
    if not plan.compact:
        return None
    keys = {m.name: m.pattern_key for m in low_rank_modules(plan.survey.base, adapter, plan.survey.pairing)}
    grown = {keys[m.name]: m.after for m in plan.modules if m.after > m.before}
    return compact_config(adapter, grown) if grown else None


# --- checkpoints -----------------------------------------------------------------------------------


def _write_checkpoint(plan: RepairPlan, source: ModelSource, target: _Target) -> None:
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


# --- beside the weights ----------------------------------------------------------------------------


def _write_readme(plan: RepairPlan, before: Path | None, file: HashedFile) -> None:
    text = read_whole_file(before, max_bytes=_MAX_README_BYTES) if before and before.is_file() else None
    file.write(readme_bytes(plan, text))


def _check_written(plan: RepairPlan, folder: Path, checkpoint: ModelSource | None) -> None:
    """Read back what was written: it must be as complete as the original.

    Raises:
        MalformedInput: it is not, which a failing disk can cause.
    """
    if checkpoint is not None:
        for path in {tensor.path for tensor in checkpoint.tensors.values()}:
            written = read_header(folder / path.name)
            expected = {t.name: (t.dtype, t.shape) for t in checkpoint.tensors.values() if t.path == path}
            assert {t.name: (t.dtype, t.shape) for t in written.values()} == expected
        return
    original = plan.survey.tuned
    assert not isinstance(original, ModelSource)
    is_pickle = plan.is_copy and original.path.suffix != ".safetensors"
    written_adapter = open_adapter(folder, allow_pickle=is_pickle, lora_alpha=original.lora_alpha)
    pairing = pair_adapter(plan.survey.base, written_adapter)
    assert [pair.name for pair in pairing.pairs] == [pair.name for pair in plan.survey.pairing.pairs]
