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
from intruscope.writing.checkpoint import write_checkpoint
from intruscope.writing.folder import README, output_folder

if TYPE_CHECKING:
    from intruscope.progress import OnProgress
    from intruscope.repair.records import RepairRecord

_MAX_README_BYTES = 16 << 20


def write_repair(plan: RepairRecord, out: Path | str, *, on_progress: OnProgress) -> Path:
    """See :meth:`intruscope.repair.plan.RepairPlan.apply`."""
    out = Path(out)
    base, tuned = plan.survey.base, plan.survey.tuned
    checkpoint = tuned if isinstance(tuned, ModelSource) else base
    written = checkpoint if plan.writes == "checkpoint" else tuned
    files, home = written.weight_files, None if written.path is None else written.folder
    # Of a model that is one file, the rest of its folder may be anything.
    given = written.path if written is checkpoint else Path(tuned.name)
    is_single = home is not None and given is not None and given.is_file()
    num_bytes = sum(tensor.num_bytes for tensor in written.tensors.values())
    with output_folder(out, (base, tuned), num_bytes=num_bytes, on_progress=on_progress) as target:
        if plan.writes == "checkpoint":
            write_checkpoint(checkpoint, new_checkpoint_tensors(plan, checkpoint), target)
        else:
            assert not isinstance(tuned, ModelSource)
            write_adapter(plan, tuned, target)
        left_out = target.copy_companions(
            home,
            files,
            single=("config.json" if written is checkpoint else CONFIG_NAME) if is_single else None,
            skip={MANIFEST_NAME, *([] if plan.is_copy else [README])},
        )
        if plan.writes == "adapter" and plan.lora is None:
            check_adapter(plan, target.path)
        if not plan.is_copy:
            card = None if home is None or is_single else home / README
            has_card = card is not None and card.is_file()
            before = read_whole_file(card, max_bytes=_MAX_README_BYTES) if card and has_card else None
            target.write(README, readme_bytes(plan, before))
        target.finish(MANIFEST_NAME, plan_record(plan), not_copied=list(left_out))
    return out
