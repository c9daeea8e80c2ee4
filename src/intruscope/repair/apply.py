"""Writing a repaired model: the original's files with what was edited replaced, whole or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.adapters.folder import CONFIG_NAME, open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import MalformedInput
from intruscope.repair.manifest import MANIFEST_NAME, manifest_bytes, readme_bytes
from intruscope.repair.target import Target
from intruscope.repair.write_adapter import write_adapter
from intruscope.repair.write_checkpoint import write_checkpoint
from intruscope.weights.companions import Companions, companions
from intruscope.weights.output import check_output, check_room, whole_folder
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import read_whole_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.repair.plan import RepairPlan
    from intruscope.weights.written import HashedFile

_README = "README.md"
_MAX_README_BYTES = 16 << 20


def write_repair(plan: RepairPlan, out: Path | str, *, on_progress: Callable[[int, int], None]) -> Path:
    """See :meth:`intruscope.repair.plan.RepairPlan.apply`."""
    out = Path(out)
    check_output(out, _inputs(plan))
    checkpoint = _checkpoint(plan)
    adapter = plan.survey.tuned
    if checkpoint is not None:
        files = checkpoint.weight_files
        home = checkpoint.on_disk if checkpoint.on_disk.is_dir() else None
    else:
        assert not isinstance(adapter, ModelSource)
        files = [adapter.on_disk]
        home = None if Path(adapter.name).is_file() else adapter.folder
    check_room(out, sum(file.stat().st_size for file in files))
    with whole_folder(out) as folder:
        target = Target(folder, total=sum(file.stat().st_size for file in files), on_progress=on_progress)
        if checkpoint is not None:
            write_checkpoint(plan, checkpoint, target)
        else:
            assert not isinstance(adapter, ModelSource)
            write_adapter(plan, adapter, target)
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


def _inputs(plan: RepairPlan) -> list[Path]:
    names = (plan.survey.base.name, plan.survey.tuned.name)
    files = [Path(str(record["path"])) for record in plan.survey.pairing.inputs]
    return [*(Path(name) for name in names if Path(name).is_dir()), *files]


def _checkpoint(plan: RepairPlan) -> ModelSource | None:
    """The checkpoint whose files are written anew; None where an adapter is."""
    if plan.writes == "adapter":
        return None
    return plan.survey.tuned if isinstance(plan.survey.tuned, ModelSource) else plan.survey.base


def _companions(home: Path | None, files: list[Path], checkpoint: ModelSource | None) -> Companions:
    if home is not None:
        return companions(home, weights=frozenset(file.name for file in files))
    # Of a single file the folder may be anything: only the config that was read goes with it.
    name = CONFIG_NAME if checkpoint is None else "config.json"
    return Companions((Path(name),) if (files[0].parent / name).is_file() else (), ())


def _write_readme(plan: RepairPlan, before: Path | None, file: HashedFile) -> None:
    text = read_whole_file(before, max_bytes=_MAX_README_BYTES) if before and before.is_file() else None
    file.write(readme_bytes(plan, text))


def _check_written(plan: RepairPlan, folder: Path, checkpoint: ModelSource | None) -> None:
    """Read back what was written: it must be as complete as the original, and readable in the same way.

    Raises:
        MalformedInput: it is not, which a failing disk can cause.
    """
    if checkpoint is not None:
        for path in checkpoint.weight_files:
            written = read_header(folder / path.name)
            expected = {t.name: (t.dtype, t.shape) for t in checkpoint.tensors.values() if t.path == path}
            if {t.name: (t.dtype, t.shape) for t in written.values()} != expected:
                raise _damaged(path.name)
        return
    original = plan.survey.tuned
    assert not isinstance(original, ModelSource)
    is_pickle = plan.is_copy and original.on_disk.suffix != ".safetensors"
    written_adapter = open_adapter(folder, allow_pickle=is_pickle, lora_alpha=original.lora_alpha)
    pairing = pair_adapter(plan.survey.base, written_adapter)
    if [pair.name for pair in pairing.pairs] != [pair.name for pair in plan.survey.pairing.pairs]:
        raise _damaged(written_adapter.on_disk.name)


def _damaged(name: str) -> MalformedInput:
    fact = "got back other tensors than were written, expected the same"
    return MalformedInput(fact, remedy="check the disk and run again", file=name)
