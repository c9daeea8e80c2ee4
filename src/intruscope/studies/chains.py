"""A chain of tasks through ``sequence``, and its figures as the claims name them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from intruscope.errors import IncompleteResult

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.studies.grid import Chain
    from intruscope.studies.inputs import Inputs
    from intruscope.studies.scale import Base

_REPORT = "chain.json"
"""That :mod:`intruscope.sequence.folder` writes last."""
_FIRST = 2
"""'The first tasks' of C24."""


def chain_figures(chain: Chain, base: Base, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Train task after task, or what is left of it.

    Returns:
        The columns of :mod:`intruscope.studies.claims_sequence`, with ``status``.

    Raises:
        IntruscopeError: a file is damaged, or there is no room.
    """
    from intruscope.forgetting.texts import read_texts
    from intruscope.sequence.chain import chain as run_chain
    from intruscope.sequence.records import ChainSettings, ChainTask, chain_json
    from intruscope.studies.training import tune_settings

    out = folder / "chain"
    if (out / _REPORT).exists():
        return figures_of(json.loads((out / _REPORT).read_bytes()))
    settings = ChainSettings(
        training=tune_settings(chain),
        num_head_examples=chain.head_examples,
        num_eval_examples=chain.eval_examples,
        max_sequences=base.sweep_sequences,
        map_size=0,
        workers=0,
    )
    tasks = [
        ChainTask(name=name, train=inputs.task(name, "train"), held_out=inputs.task(name, "eval"))  # type: ignore[arg-type]
        for name in chain.tasks
    ]
    try:
        report = run_chain(
            inputs.base,
            tasks=tasks,
            out=out,
            settings=settings,
            text=read_texts(inputs.text),
            pictures=False,  # a study draws its own
        )
    except IncompleteResult as error:
        shutil.rmtree(out, ignore_errors=True)
        return {"status": "diverged", "reason": error.fact}
    return figures_of(chain_json(report))


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """Figures of a chain's report, the plain form of :class:`intruscope.sequence.records.ChainReport`.

    Args:
        report: Of at least two tasks.
    """
    tasks = list(report["tasks"])
    accuracy = {(cell["stage"], cell["task"]): cell["accuracy"]["estimate"] for cell in report["cells"]}
    last = len(tasks)
    stages = report["stages"]
    first = tasks[:_FIRST]
    gain = sum(accuracy[last, task] - accuracy[0, task] for task in first) / len(first)
    return {
        "status": "ok",
        "reason": None,
        "lost": stages[-1]["transfer"]["forgetting"],
        "count_first": stages[0]["weights"]["num_intruders"],
        "count_last": stages[-1]["weights"]["num_intruders"],
        "candidates": stages[-1]["weights"]["num_candidates"],
        "first_tasks_gain": gain,
        "forgetting": stages[-1]["forgetting"]["change"]["estimate"] if stages[-1]["forgetting"] else None,
        "counts_by_stage": [stage["weights"]["num_intruders"] for stage in stages],
        "accuracies": [[accuracy[stage, task] for task in tasks] for stage in range(last + 1)],
    }
