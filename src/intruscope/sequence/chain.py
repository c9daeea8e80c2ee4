"""Task after task on one model: train, merge or keep, score every task, scan, measure text; durably.

The paper's sequential study (arXiv 2410.21228, v1 Figures 8 and 17, v3 Figure 9): after each task the update
is merged into the body and the method starts anew, and every task is scored by a new head on the frozen body.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError
from intruscope.forgetting.tasks import ClassificationTask
from intruscope.methods.registry import find
from intruscope.plots.figures import write_figures
from intruscope.plots.sequence import chain_figures
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.sequence.assemble import TEXT_OF_BASE, assemble, key, outcomes_text
from intruscope.sequence.bodies import merged_body, stored_names, write_body
from intruscope.sequence.features import Features, features
from intruscope.sequence.folder import ChainFolder
from intruscope.sequence.heads import FittedHead, fit_choices, fit_classes
from intruscope.sequence.plan import checked_method, checked_names, plan_of_chain, scan_settings, stage_seed
from intruscope.sequence.records import ChainReport, ChainSettings, ChainTask, HeadFigures, chain_json
from intruscope.sequence.text_loss import text_losses
from intruscope.sequence.weights import look
from intruscope.train.data import label_names
from intruscope.train.encoding import encode
from intruscope.train.loading import Loaded, load_for
from intruscope.train.tune import tune
from intruscope.weights.source import ModelSource, open_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intruscope.forgetting.tasks import ChoiceTask
    from intruscope.forgetting.texts import Corpus
    from intruscope.train.data import TrainingData


def chain(
    base: str,
    *,
    tasks: Sequence[ChainTask],
    out: Path,
    settings: ChainSettings,
    text: Corpus | None = None,
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
    pictures: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> ChainReport:
    """Train task after task; run again after an interruption, it goes on where it stopped.

    Args:
        base: Base model: a path or ``org/name@revision``.
        tasks: In the order of training; at least two, each with its own name.
        out: Folder of the chain.
        settings: Settings of the chain.
        text: Text on which forgetting is measured after every stage; the base needs its language-model head.
        tokenizer: Folder of a tokenizer; the base's by default.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        pictures: Draw the finished chain, and what a watch saw of its runs.
        on_progress: Called after every training step, and for every task, matrix and batch of text.

    Raises:
        UsageError: a method that cannot be chained, fewer than two tasks, one of them twice.
        MalformedInput: data or model are damaged.
        UnsupportedFormat: a base that what is trained could not be put back into.
        OutputConflict: the folder holds something else, or a finished chain.
        IncompleteResult: a loss became NaN.
        ResourceExhausted: no memory for a batch, or no room.
    """
    method = checked_method(settings.training.method, settings.between)
    names = checked_names([task.name for task in tasks])
    source = open_model(base, allow_pickle=allow_pickle)
    plan = plan_of_chain(source, method, tasks, settings, text)
    with ChainFolder(out, plan) as folder:
        run = _Chain(
            base=base,
            source=source,
            tasks=tasks,
            folder=folder,
            settings=settings,
            text=text,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            pictures=pictures,
            on_progress=on_progress,
        )
        model = run.run()
        report = assemble(
            folder.records,
            tasks=names,
            base=base,
            method=method.name,
            between=settings.between,
            plan=plan,
            seed=settings.training.seed,
            model=str(model.relative_to(out)),
            environment=plan["environment"],
        )
        if pictures:
            write_figures(lambda: chain_figures(report), folder.pictures)
        folder.finish(chain_json(report))
    return report


class _Chain:
    """One chain in its open folder."""

    def __init__(
        self,
        *,
        base: str,
        source: ModelSource,
        tasks: Sequence[ChainTask],
        folder: ChainFolder,
        settings: ChainSettings,
        text: Corpus | None,
        tokenizer: str | Path | None,
        allow_pickle: bool,
        pictures: bool,
        on_progress: OnProgress,
    ) -> None:
        self._base = base
        self._source = source
        self._tasks = tasks
        self._folder = folder
        self._settings = settings
        self._text = text
        self._tokenizer = tokenizer
        self._allow_pickle = allow_pickle
        self._pictures = pictures
        self._on_progress = on_progress
        self._encoded: dict[str, tuple[TrainingData, TrainingData]] = {}

    def run(self) -> Path:
        """Everything that is not done yet, and the folder of the last body."""
        if self._text is not None:
            self._folder.once(TEXT_OF_BASE, partial(self._losses, self._base, 0))
        self._score(0)
        for stage in range(1, len(self._tasks) + 1):
            self._folder.once(key("trained", stage), partial(self._train, stage))
            self._folder.once(key("merged", stage), partial(self._merge, stage))
            self._drop_before(stage)
            self._score(stage)
            self._folder.once(key("scanned", stage), partial(self._scan, stage))
            shutil.rmtree(self._stage(stage) / "scan", ignore_errors=True)
            if self._text is not None:
                losses = partial(self._losses, str(self._body(stage)), stage)
                self._folder.once(key("text", stage), losses)
        return self._body(len(self._tasks))

    # --- places --------------------------------------------------------------------------------------

    def _task(self, stage: int) -> ChainTask:
        return self._tasks[stage - 1]

    def _stage(self, stage: int) -> Path:
        return self._folder.stage(stage, self._task(stage).name)

    def _body(self, stage: int) -> Path:
        return self._stage(stage) / "body"

    def _goes_on(self, stage: int) -> bool:
        """Whether a stage takes up the adapter of the one before, on the original base."""
        adapter = "trains_base" not in find(self._settings.training.method).departures
        return self._settings.between == "keep" and adapter and stage > 1

    def _start(self, stage: int) -> str:
        """The model that a stage is trained from."""
        return self._base if stage == 1 or self._goes_on(stage) else str(self._body(stage - 1))

    # --- steps ---------------------------------------------------------------------------------------

    def _train(self, stage: int) -> dict[str, Any]:
        task, run = self._task(stage), self._stage(stage) / "run"
        seed = stage_seed(self._settings.training.seed, stage)
        name = f"{stage}. {task.name}"
        if (run / "run.json").exists():  # stopped between the end of a run and its record here
            found = json.loads((run / "run.json").read_bytes())
        else:
            report = tune(
                self._start(stage),
                out=run,
                settings=replace(self._settings.training, seed=seed),
                data=task.train,
                start=self._stage(stage - 1) / "run" / "model" if self._goes_on(stage) else None,
                tokenizer=self._tokenizer,
                allow_pickle=self._allow_pickle,
                pictures=self._pictures,
                on_progress=self._under(name),
            )
            found = asdict(report)
        return {
            "seed": seed,
            "num_steps": found["steps"],
            "num_trained": found["num_trained"],
            "loss": found["loss"],
            "train_seconds": found["seconds"],
        }

    def _merge(self, stage: int) -> dict[str, Any]:
        body = self._body(stage)
        if not body.exists():
            start = open_model(self._start(stage), allow_pickle=self._allow_pickle)
            loaded = self._loaded(start, self._task(stage).train)
            names = stored_names(self._source, loaded)
            merged = merged_body(loaded, self._settings.training.method, self._stage(stage) / "run" / "model")
            write_body(self._source, names, merged, loaded.tokenizer, body)
        return {}

    def _drop_before(self, stage: int) -> None:
        """What no later stage needs of the one before."""
        if stage > 1:
            shutil.rmtree(self._stage(stage - 1) / "run" / "model", ignore_errors=True)
            if not self._settings.keep_models:
                shutil.rmtree(self._body(stage - 1), ignore_errors=True)

    def _score(self, stage: int) -> None:
        """Every task by a new head on the frozen body of a stage."""
        loaded: dict[type, Loaded] = {}
        for place, task in enumerate(self._tasks):
            self._report_scored(stage, place)
            name = key("scored", stage, task.name)
            if name in self._folder.records:
                continue
            kind = type(task.train)
            if kind not in loaded:
                source = self._source if stage == 0 else open_model(self._body(stage))
                loaded[kind] = self._loaded(source, task.train)
                if stage == 0:
                    self._check(source, loaded[kind], task)
            fitting, scoring = self._data(task, loaded[kind])
            bf16 = self._settings.training.bf16
            fitted_on, scored_on = (features(loaded[kind], data, bf16=bf16) for data in (fitting, scoring))
            self._folder.once(name, partial(_scored, fitted_on, scored_on, task))
        self._report_scored(stage, len(self._tasks))

    def _check(self, source: ModelSource, loaded: Loaded, task: ChainTask) -> None:
        """Tell before training what could not be scored, or not be put back."""
        if loaded.kind == "endings":
            raise UsageError(
                f"{task.name} is multiple choice, which chain cannot score with a causal language model: it "
                "puts a "
                "new head on the frozen body",
                remedy="leave the task out, or use a masked language model",
            )
        stored_names(source, loaded)

    def _scan(self, stage: int) -> dict[str, Any]:
        return look(
            self._base,
            self._body(stage),
            scan_settings(self._settings),
            work=self._stage(stage) / "scan",
            workers=self._settings.workers,
            allow_pickle=self._allow_pickle,
            on_progress=self._under(stage),
        )

    def _losses(self, model: str, stage: int) -> dict[str, Any]:
        assert self._text is not None
        return text_losses(
            model,
            self._text,
            max_sequences=self._settings.max_sequences,
            seed=self._settings.training.seed,
            tokenizer=self._tokenizer,
            allow_pickle=self._allow_pickle,
            on_progress=self._under(stage),
        )

    def _under(self, stage: object) -> OnProgress:
        return lambda event: self._on_progress(replace(event, stage=f"{stage}: {event.stage}"))

    def _report_scored(self, stage: int, num_scored: int) -> None:
        scored = Progress(stage="scoring", done=num_scored, total=len(self._tasks), unit="tasks")
        self._under(stage)(scored)

    # --- models and data -----------------------------------------------------------------------------

    def _loaded(self, source: ModelSource, data: ClassificationTask | ChoiceTask) -> Loaded:
        """A model whose body is asked for: what is new in it, and drawn at random, is not looked at."""
        return load_for(source, data, seed=0, tokenizer=self._tokenizer)

    def _data(self, task: ChainTask, loaded: Loaded) -> tuple[TrainingData, TrainingData]:
        """The examples that heads are fitted on and scored on, as tokens: the same at every stage."""
        if task.name not in self._encoded:
            settings = self._settings
            # The head that was loaded may be of another task of the same kind; labels are this task's own.
            labels = label_names(task.train) if isinstance(task.train, ClassificationTask) else loaded.labels
            own = replace(loaded, labels=labels)
            length = settings.training.max_length or settings.training.recipe.max_length
            seed = settings.training.seed
            self._encoded[task.name] = (
                encode(own, task.train, length, at_most=settings.num_head_examples, seed=seed),
                encode(own, task.held_out, length, at_most=settings.num_eval_examples, seed=seed),
            )
        return self._encoded[task.name]


def _scored(fitting: Features, scoring: Features, task: ChainTask) -> dict[str, Any]:
    """A head fitted on one part of a task, and which examples of the other it gets right."""
    head: FittedHead
    if isinstance(task.train, ClassificationTask):
        num_classes = len(label_names(task.train))
        head = fit_classes(fitting.rows_RD, fitting.right_N, num_classes=num_classes)
        found_N = head.classes(scoring.rows_RD)
    else:
        head = fit_choices(fitting.rows_RD, fitting.first_N, fitting.right_N)
        found_N = head.choices(scoring.rows_RD, scoring.first_N)
    figures = HeadFigures(
        num_examples=len(fitting.right_N),
        num_features=fitting.rows_RD.shape[1],
        loss=head.loss,
        gradient_norm=head.gradient_norm,
        num_steps=head.num_steps,
        converged=head.converged,
    )
    return {"right": outcomes_text(found_N == scoring.right_N), "head": asdict(figures)}
