"""What a chain is, before anything is done: what makes no sense is refused here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import UsageError, printable
from intruscope.forgetting.tasks import ClassificationTask
from intruscope.methods.registry import find
from intruscope.sequence.heads import PENALTY, TOLERANCE
from intruscope.spectra.records import ScanSettings
from intruscope.train.carrying import can_go_on
from intruscope.train.plan import plan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.forgetting.tasks import ChoiceTask
    from intruscope.forgetting.texts import Corpus
    from intruscope.methods.contract import Method
    from intruscope.sequence.records import Between, ChainSettings, ChainTask
    from intruscope.weights.source import ModelSource


def checked_method(name: str, between: Between) -> Method:
    """The method, if it can be chained.

    Raises:
        UsageError: it trains nothing, has no update that could be merged, or cannot go on with its adapter.
    """
    method = find(name)
    if "no_training" in method.departures:
        fact = f"{name} computes an update and cannot be trained"
        raise UsageError(fact, remedy="choose another method; see intruscope methods")
    if not method.mergeable:
        raise UsageError(
            f"the update of {name} depends on the input, so it cannot be merged into the weights, and every "
            "stage is "
            "scored and scanned as a plain model",
            remedy="choose another method; see intruscope methods",
        )
    if between == "keep" and not can_go_on(method) and "trains_base" not in method.departures:
        raise UsageError(
            f"--between keep does not work with {name}, which saves its adapter in another form than it "
            "trains",
            remedy="leave --between out: the update is then merged, and the method starts anew",
        )
    return method


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of tasks, if they make a chain.

    Raises:
        UsageError: fewer than two, one of them twice, or one that cannot name a folder.
    """
    if len(names) < 2:
        raise UsageError(
            f"{len(names)} task is not a chain; at least two are needed",
            remedy="list several with --tasks A,B, or train one with intruscope tune",
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"the task {printable(twice)} is listed twice",
            remedy="list each task once",
        )
    strange = next((name for name in names if not name.replace("-", "_").isidentifier()), None)
    if strange is not None:
        raise UsageError(
            f"the task name {printable(strange)} cannot name a folder: use letters, digits, - and _ only",
            remedy="choose another name",
        )
    return tuple(names)


def stage_seed(seed: int, stage: int) -> int:
    """The seed of a stage: 32 bits that depend on the chain's seed and the stage's place alone."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])


def plan_of_chain(
    source: ModelSource,
    method: Method,
    tasks: Sequence[ChainTask],
    settings: ChainSettings,
    text: Corpus | None,
) -> dict[str, Any]:
    """Everything that can change a figure, with every default filled in; plain data.

    Args:
        source: The base.
        method: That trains every stage.
        tasks: In order.
        settings: What is done.
        text: Of forgetting, if any.

    Raises:
        UsageError: options that the method does not have, or no learning rate is known.
    """
    training = settings.training
    options = method.options(training.recipe.completed(method, dict(training.options)))
    plan = plan_of(source, training, method, options, tasks[0].train, None, ())
    for each in ("data_sha256", "held_out_sha256", "forget_text"):
        plan.pop(each)
    return {
        **plan,
        "tasks": [
            {
                "name": task.name,
                "train_sha256": task.train.sha256,
                "held_out_sha256": task.held_out.sha256,
                "num_train": _num_examples(task.train),
                "num_held_out": _num_examples(task.held_out),
            }
            for task in tasks
        ],
        "between": settings.between,
        "heads": {
            "penalty": PENALTY,
            "tolerance": TOLERANCE,
            "num_examples": settings.num_head_examples,
            "num_eval_examples": settings.num_eval_examples,
        },
        "scan": asdict(scan_settings(settings)),
        "text_sha256": text.sha256 if text is not None else None,
        "max_sequences": settings.max_sequences,
        "keep_models": settings.keep_models,
    }


def _num_examples(task: ClassificationTask | ChoiceTask) -> int:
    return len(task.labels) if isinstance(task, ClassificationTask) else len(task.choices)


def scan_settings(settings: ChainSettings) -> ScanSettings:
    """Of the scan after every stage."""
    return ScanSettings(seed=settings.training.seed, maps=settings.map_size)
