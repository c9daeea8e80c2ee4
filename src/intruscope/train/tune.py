"""Train a model by any method on a task or on text, durably: thin on transformers' Trainer.

accelerate comes with it (several processes, FSDP), and so do gradient accumulation, ``report_to`` and exact
resuming. What is here puts the parts together: the plan, the model and its data, the method, the run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.errors import UsageError
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, Task, TextTask
from intruscope.forgetting.texts import read_texts
from intruscope.methods.registry import find
from intruscope.progress import OnProgress, ignore_progress
from intruscope.train import processes
from intruscope.train.carrying import go_on
from intruscope.train.encoding import encode, kept_batches
from intruscope.train.loading import load_for
from intruscope.train.plan import plan_of, training_arguments
from intruscope.train.replay import check_apart
from intruscope.train.run import Run, attach, ending_scorer
from intruscope.train.run_folder import RunFolder
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intruscope.forgetting.texts import Corpus
    from intruscope.methods.contract import Method
    from intruscope.train.settings import TuneReport, TuneSettings


def tune(
    base: str,
    *,
    out: Path,
    settings: TuneSettings,
    data: Task | Corpus,
    held_out: Task | None = None,
    forget_text: Sequence[str | Path] = (),
    keep_text: Corpus | None = None,
    replay: Corpus | None = None,
    start: Path | None = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
    pictures: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> TuneReport:
    """Train a model; run again after an interruption, it goes on from its last checkpoint.

    Args:
        base: Base model: a path or ``org/name@revision``.
        out: Folder of the run.
        settings: Settings of the run.
        data: A classification, multiple choice, or text for a language model.
        held_out: A task of the same kind (and labels), scored after every epoch; for a run on text held-out
            text, of which the loss is taken.
        forget_text: Text on which the watch measures forgetting.
        keep_text: Text whose knowledge is to be kept, for a method that starts from it.
        replay: General text that every step also learns from, so that the model forgets less.
        start: Model of an earlier run by the same method on the same base, whose adapter this one goes on
            with under a new head.
        tokenizer: Folder of a tokenizer; the base's by default.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        pictures: Draw a picture of what the watch saw.
        on_progress: Called after every step.

    Raises:
        UsageError: settings that make no sense, an unknown method or option, no target, no learning rate.
        MalformedInput: data or model are damaged, or a label is unknown.
        OutputConflict: the folder holds something else.
        IncompleteResult: the loss became NaN; the last good checkpoint is named.
        ResourceExhausted: no memory for a batch, or no room.
    """
    method = find(settings.method)
    if "no_training" in method.departures:
        fact = f"{method.name} computes an update and cannot be trained"
        raise UsageError(fact, remedy=f"use it from Python; see intruscope methods {method.name}")
    options = method.options(settings.recipe.completed(method, dict(settings.options)))
    _check_kept(method, keep_text, forget_text)
    source = open_model(base, allow_pickle=allow_pickle)
    _check_held_out(held_out, data)
    _check_forgetting(settings, replay, forget_text)
    num_processes = processes.join()
    plan = plan_of(source, settings, method, options, data, held_out, forget_text, num_processes, replay)
    if start is not None:
        plan["start"] = str(start)
    if keep_text is not None:
        plan["keep_text_sha256"] = keep_text.sha256
    with RunFolder(out, plan) as folder:
        loaded = load_for(source, data, seed=settings.seed, tokenizer=tokenizer)
        length: int = plan["max_length"]
        training = encode(loaded, data, length, at_most=settings.examples, seed=settings.seed)
        evaluation = encode(loaded, held_out, length) if held_out is not None else None
        scorer = None
        if isinstance(held_out, ChoiceTask) and loaded.kind == "endings":
            scorer = ending_scorer(loaded, held_out, length)
        arguments = training_arguments(
            plan,
            folder.checkpoints,
            len(training.examples),
            evaluates=held_out is not None,
            report_to=settings.report_to,
        )
        attached = attach(
            loaded,
            method,
            options,
            training,
            arguments,
            targets=settings.targets,
            kept=kept_batches(loaded, keep_text, length, seed=settings.seed) if keep_text else None,
            seed=settings.seed,
        )
        if start is not None:
            go_on(attached, method, start)
        run = Run(
            folder=folder,
            plan=plan,
            base=base,
            settings=settings,
            method=method,
            attached=attached,
            loaded=loaded,
            source=source,
            forget_text=forget_text,
            replay=replay,
            pictures=pictures,
        )
        return run.train(arguments, training, evaluation, scorer, on_progress)


def _check_kept(method: Method, keep_text: Corpus | None, forget_text: Sequence[str | Path]) -> None:
    if method.needs_kept and keep_text is None:
        raise UsageError(
            f"{method.name} starts from text whose knowledge it is to keep, and there is none",
            remedy="give general text with --keep-text, or choose another method",
        )
    if keep_text is not None and not method.needs_kept:
        fact = f"{method.name} does not start from text to keep, so --keep-text has no effect"
        raise UsageError(fact, remedy="leave --keep-text out")
    if keep_text is not None and forget_text:
        measured = read_texts(list(forget_text))
        check_apart(keep_text, measured, flag="--keep-text", how="the text to keep")


def _check_held_out(held_out: Task | None, data: Task | Corpus) -> None:
    if held_out is None:
        return
    if not isinstance(data, (ClassificationTask, ChoiceTask)):
        if isinstance(held_out, TextTask):
            return
        raise UsageError(
            "a run on text has no labels, so it cannot be scored on a task with --eval",
            remedy="leave --eval out, and score the model afterwards with intruscope forget",
        )
    if type(held_out) is not type(data):
        raise UsageError(
            f"--eval {held_out.name} and --task {data.name} are of different kinds",
            remedy="use classification for both, or multiple choice for both",
        )


def _check_forgetting(
    settings: TuneSettings, replay: Corpus | None, forget_text: Sequence[str | Path]
) -> None:
    limit, weight = settings.max_forgetting, settings.replay_weight
    if not (math.isfinite(weight) and weight >= 0.0):
        raise UsageError(f"the replay weight is {weight}", remedy="give a number of at least 0")
    if limit is not None and not limit >= 0.0:
        raise UsageError(f"the forgetting budget is {limit}", remedy="give a number of at least 0")
    if limit is not None and not forget_text:
        raise UsageError(
            "a forgetting budget needs a text on which forgetting is measured",
            remedy="name one with --forget-text",
        )
    if limit is not None and not settings.watch_every:
        raise UsageError(
            "a forgetting budget is checked at the scans during training, which are off",
            remedy="set the steps between them with --watch",
        )
    if replay is not None and forget_text:
        check_apart(replay, read_texts(list(forget_text)))
