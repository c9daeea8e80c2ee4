"""The adapters that are merged: trained one by one, each finished before the next begins."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from intruscope.errors import IncompleteResult
from intruscope.studies.training import part_settings

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.studies.grid import MergeSet
    from intruscope.studies.inputs import Inputs


def train_parts(work: MergeSet, inputs: Inputs, folder: Path) -> list[Path]:
    """Train what is missing of a set's adapters.

    Args:
        work: The set.
        inputs: Of its base.
        folder: Of the set; an adapter that is finished there is not trained again.

    Returns:
        The adapters' folders, in the order of the tasks.

    Raises:
        IncompleteResult: the loss of an adapter became NaN.
        IntruscopeError: a file is damaged, or there is no room.
    """
    from intruscope.train.tune import tune

    found = []
    for place, task in enumerate(work.tasks):
        out = folder / "parts" / task
        if not (out / "run.json").exists():
            try:
                tune(
                    inputs.base,
                    out=out,
                    settings=part_settings(work, place),
                    data=inputs.task(task, "train"),
                    pictures=False,  # a study draws its own
                )
            except IncompleteResult:
                shutil.rmtree(out, ignore_errors=True)
                raise
        found.append(out / "model")
    return found
