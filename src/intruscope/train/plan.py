"""What a run is: everything that can change its result, as plain data; and transformers' arguments for it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from intruscope.engine.environment import LAB, environment
from intruscope.errors import UsageError, nearest, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.methods.contract import Method, Options
    from intruscope.train.settings import TuneSettings
    from intruscope.weights.source import ModelSource


def plan_of(
    source: ModelSource,
    settings: TuneSettings,
    method: Method,
    options: Options,
    data: Task | Corpus,
    held_out: Task | None,
    forget_text: Sequence[str | Path],
    num_processes: int = 1,
    replay: Corpus | None = None,
) -> dict[str, Any]:
    """Everything that can change the result, with every default filled in.

    Raises:
        UsageError: no learning rate is known, or it is not finite.
    """
    recipe = settings.recipe
    given = asdict(settings)
    kept = (
        "examples", "accumulate", "group_by_length", "bf16", "seed", "save_every", "watch_every",
        "eval_every",
    )  # fmt: skip
    return {
        "base": source.name,
        "base_revision": source.revision,
        "base_files": list(source.inputs),
        "method": method.name,
        "options": options,
        "recipe": recipe.name,
        "rate": _checked(settings.rate if settings.rate is not None else recipe.rate(method, options)),
        "epochs": None if settings.steps is not None else settings.epochs or recipe.epochs,
        "steps": settings.steps,
        "batch": settings.batch or recipe.batch,
        "max_length": settings.max_length or recipe.max_length,
        "schedule": recipe.schedule,
        "warmup": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "embeddings": "frozen" if "trains_base" in method.departures else "as the method leaves them",
        **{name: given[name] for name in kept},
        "targets": list(settings.targets) or "all-linear",
        "data_sha256": data.sha256,
        "held_out_sha256": held_out.sha256 if held_out is not None else None,
        "forget_text": [str(name) for name in forget_text],
        **_forgetting(settings, replay),
        "processes": num_processes,
        "environment": environment(LAB),
    }


def _forgetting(settings: TuneSettings, replay: Corpus | None) -> dict[str, Any]:
    """What keeps the model from forgetting; nothing where nothing is asked for."""
    found: dict[str, Any] = {}
    if replay is not None:
        found["replay"] = {
            "text": [source.name for source in replay.sources],
            "sha256": replay.sha256,
            "weight": settings.replay_weight,
            "target": settings.replay_target,
        }
    if settings.max_forgetting is not None:
        # JSON has no infinity, and an infinite budget is none.
        limit = settings.max_forgetting if math.isfinite(settings.max_forgetting) else None
        found["budget"] = {"max_forgetting": limit, "on_budget": settings.on_budget}
    return found


def _checked(rate: float) -> float:
    if 0.0 <= rate < float("inf"):
        return rate
    raise UsageError(f"the learning rate is {rate}, which is not a finite number", remedy="lower --lr")


def _check_integrations(names: Sequence[str]) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in names:
        if name in ("all", "none") or name in get_available_reporting_integrations():
            continue
        if name in INTEGRATION_TO_CALLBACK:
            fact = f"the package that --report-to {name} needs is not installed"
            raise UsageError(fact, remedy="install it, or leave --report-to out")
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise UsageError(
            f"--report-to {printable(name)} is not an integration of transformers; there are {known}",
            remedy=nearest(name, INTEGRATION_TO_CALLBACK, what="integration") or "leave --report-to out",
        )


def training_arguments(
    plan: Mapping[str, Any],
    folder: Path,
    num_examples: int,
    *,
    evaluates: bool = False,
    report_to: Sequence[str] = (),
) -> Any:
    """The arguments of transformers for a plan.

    Args:
        plan: By :func:`plan_of`.
        folder: Of the checkpoints.
        num_examples: To train on.
        evaluates: Whether something is scored after every epoch.
        report_to: Integrations of transformers that take the log.

    Raises:
        UsageError: a batch that cannot be taken in parts of one size, or an integration that is not there.
    """
    _check_integrations(report_to)
    num_parts = plan["accumulate"] * plan["processes"]
    if plan["batch"] % num_parts:
        parts = f"{plan['accumulate']} for each of {plan['processes']} processes"
        raise UsageError(
            f"a batch of {plan['batch']} cannot be split evenly into {num_parts} parts ({parts})",
            remedy="change --batch, --accumulate or the number of processes",
        )
    from transformers import TrainingArguments

    part = plan["batch"] // num_parts
    steps_per_epoch = math.ceil(num_examples / plan["batch"])
    steps = plan["steps"] or plan["epochs"] * steps_per_epoch
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=part,
        per_device_eval_batch_size=4 * part,
        gradient_accumulation_steps=plan["accumulate"],
        learning_rate=plan["rate"],
        lr_scheduler_type=plan["schedule"],
        warmup_steps=math.ceil(plan["warmup"] * steps),
        weight_decay=plan["weight_decay"],
        train_sampling_strategy="group_by_length" if plan["group_by_length"] else "random",
        bf16=plan["bf16"],
        use_cpu=not torch.accelerator.is_available(),
        seed=plan["seed"],
        save_steps=plan["save_every"],
        save_total_limit=2,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=plan["eval_every"] or steps_per_epoch,
        eval_on_start=evaluates and plan["eval_every"] is not None,
        logging_steps=max(1, min(50, steps // 20)),
        logging_nan_inf_filter=False,
        report_to=list(report_to),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=True,
    )
    if arguments.n_gpu > 1:
        # transformers would give each GPU that one process sees a whole batch: not the run that was planned.
        arguments._n_gpu = 1
    return arguments
