"""The journal of a chain to its report: nothing is computed here that a model is needed for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.sequence import text_loss, weights
from intruscope.sequence.metrics import cells, transfer
from intruscope.sequence.records import ChainReport, HeadFigures, StageReport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.sequence.records import Between, WeightFigures

    Records = Mapping[str, dict[str, Any]]

TEXT_OF_BASE = "text/0"
"""Key of the base's own losses; see :func:`key`."""


def key(what: str, stage: int, task: str | None = None) -> str:
    """Name of a record: ``trained/2``, ``scored/2/sst2``."""
    return f"{what}/{stage}" if task is None else f"{what}/{stage}/{task}"


def assemble(
    records: Records,
    *,
    tasks: Sequence[str],
    base: str,
    method: str,
    between: Between,
    plan: dict[str, Any],
    seed: int,
    model: str,
    environment: dict[str, Any],
) -> ChainReport:
    """Make the report of a finished chain.

    Args:
        records: Of the journal.
        tasks: In the order of training.
        base: As it was named.
        method: By its name.
        between: What was done between tasks.
        plan: Of the journal.
        seed: Of the bootstrap.
        model: Folder of the last body.
        environment: Versions.
    """
    scored = [[records[key("scored", stage, task)] for task in tasks] for stage in range(len(tasks) + 1)]
    right = [[_outcomes(record["right"]) for record in row] for row in scored]
    heads = [[HeadFigures(**record["head"]) for record in row] for row in scored]
    found = [weights.figures(records[key("scanned", stage)]) for stage in range(1, len(tasks) + 1)]
    map_matrix = _mapped(found)
    stages = []
    for stage, task in enumerate(tasks, start=1):
        scanned = records[key("scanned", stage)]
        text = records.get(key("text", stage))
        stages.append(
            StageReport(
                stage=stage,
                task=task,
                **records[key("trained", stage)],
                weights=found[stage - 1],
                forgetting=text_loss.figures(records[TEXT_OF_BASE], text, seed=seed) if text else None,
                transfer=transfer(right, stage, seed=seed),
                similarity=weights.similarity(scanned, map_matrix) if map_matrix is not None else None,
            )
        )
    return ChainReport(
        base=base,
        method=method,
        between=between,
        plan=plan,
        tasks=tuple(tasks),
        cells=cells(tasks, right, heads),
        stages=tuple(stages),
        map_matrix=map_matrix if any(stage.similarity is not None for stage in stages) else None,
        model=model,
        environment=environment,
    )


def outcomes_text(right_N: Any) -> str:
    """Which examples were right, a character each, as a record holds it."""
    return "".join("1" if each else "0" for each in right_N)


def _outcomes(text: str) -> Any:
    return np.frombuffer(text.encode(), dtype=np.uint8) == ord("1")


def _mapped(found: Sequence[WeightFigures]) -> str | None:
    """The matrix with the most intruders over all stages; without any, that with the largest last update."""
    if not found or not found[-1].matrices:
        return None
    totals: dict[str, int] = {}
    for stage in found:
        for matrix in stage.matrices:
            totals[matrix.name] = totals.get(matrix.name, 0) + matrix.num_intruders
    last = {matrix.name: matrix.update_norm for matrix in found[-1].matrices}
    return max(last, key=lambda name: (totals.get(name, 0), last[name]))
