"""Writing a repaired model: the original's files with what was edited replaced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.adapters.folder import CONFIG_NAME
from intruscope.repair.dense import new_checkpoint_tensors
from intruscope.repair.manifest import MANIFEST_NAME, plan_record, readme_bytes
from intruscope.repair.write_adapter import check_adapter, write_adapter
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import read_whole_file
from intruscope.writing.checkpoint import weight_files, write_checkpoint
from intruscope.writing.folder import README, output_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.repair.records import RepairRecord

_MAX_README_BYTES = 16 << 20


def write_repair(plan: RepairRecord, out: Path | str, *, on_progress: Callable[[int, int], None]) -> Path:
    """See :meth:`intruscope.repair.plan.RepairPlan.apply`."""
    out = Path(out)
    base, tuned = plan.survey.base, plan.survey.tuned
    checkpoint = tuned if isinstance(tuned, ModelSource) else base
    if plan.writes == "checkpoint":
        files, given, config = weight_files(checkpoint), checkpoint.path, "config.json"
    else:
        files, given, config = [tuned.path], Path(tuned.name), CONFIG_NAME
    home = given if plan.writes == "checkpoint" and given.is_dir() else files[0].parent
    num_bytes = sum(file.stat().st_size for file in files)
    with output_folder(out, (base, tuned), num_bytes=num_bytes, on_progress=on_progress) as target:
        if plan.writes == "checkpoint":
            write_checkpoint(checkpoint, new_checkpoint_tensors(plan, checkpoint), target)
        else:
            assert not isinstance(tuned, ModelSource)
            write_adapter(plan, tuned, target)
        left_out = target.copy_companions(
            home,
            files,
            single=config if given.is_file() else None,
            skip={MANIFEST_NAME, *([] if plan.is_copy else [README])},
        )
        if plan.writes == "adapter" and plan.lora is None:
            check_adapter(plan, target.path)
        if not plan.is_copy:
            card = None if given.is_file() or not (home / README).is_file() else home / README
            before = None if card is None else read_whole_file(card, max_bytes=_MAX_README_BYTES)
            target.write(README, readme_bytes(plan, before))
        target.finish(MANIFEST_NAME, plan_record(plan), not_copied=list(left_out))
    return out
