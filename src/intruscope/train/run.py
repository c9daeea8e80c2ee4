"""A run: a method put on a loaded model, trained, saved and recorded."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from intruscope.adapters.live_models import quiet
from intruscope.forgetting.scores import choose
from intruscope.methods.contract import Setting
from intruscope.train import processes
from intruscope.train.budget import ForgettingBudget
from intruscope.train.encoding import as_language
from intruscope.train.look_file import figures
from intruscope.train.replay import make_replay
from intruscope.train.settings import TuneReport
from intruscope.train.trainer import Keeper, SteadyTrainer, explained, silence
from intruscope.train.watch import IntruderWatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from intruscope.forgetting.tasks import ChoiceTask
    from intruscope.forgetting.texts import Corpus
    from intruscope.methods.contract import Attached, Method, Options
    from intruscope.progress import OnProgress
    from intruscope.train.data import TrainingData
    from intruscope.train.loading import Loaded
    from intruscope.train.replay import Replay
    from intruscope.train.run_folder import RunFolder
    from intruscope.train.settings import Replayed, TuneSettings
    from intruscope.train.trainer import Scorer
    from intruscope.weights.source import ModelSource

_READ_OFF = ("classification", "choices")
"""Kinds of data whose accuracy is read off the logits."""


def attach(
    loaded: Loaded,
    method: Method,
    options: Options,
    training: TrainingData,
    arguments: Any,
    *,
    targets: Sequence[str] = (),
    kept: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Attached:
    """Put a method on a loaded model, with what is new in it trained whole.

    Args:
        loaded: Changed in place.
        method: What is put on it.
        options: Of the method, complete.
        training: From which a method that starts from data takes its first batches.
        arguments: transformers', for the number of steps and the size of a batch.
        targets: Ends of the names of the modules that are changed; all linear layers by default.
        kept: Batches of text to keep, for a method that starts from it.
        seed: Of a random start.

    Raises:
        UsageError: no target matches, or the method needs text to keep.
        UnsupportedFormat: a target's layer is of a kind that the method cannot change.
    """
    setting = Setting(
        targets=tuple(targets) or "all-linear",
        train_whole=loaded.drawn,
        total_steps=arguments.max_steps,
        batches=training.batches(arguments.per_device_train_batch_size),
        kept=kept,
        seed=seed,
    )
    attached = method.attach(loaded.model, setting, options)
    if "trains_base" in method.departures:  # as in the paper, where full fine-tuning leaves them
        for module in loaded.model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.requires_grad_(False)
    return attached


def trainer_for(
    attached: Attached,
    loaded: Loaded,
    arguments: Any,
    training: TrainingData,
    evaluation: TrainingData | None = None,
    scorer: Scorer | None = None,
) -> SteadyTrainer:
    """A Trainer of an attached method, with the method's own optimiser; it prints nothing.

    Args:
        attached: By :func:`attach`.
        loaded: What it was put on.
        arguments: transformers'; the rate and the decay are taken from them.
        training: To train on.
        evaluation: Scored after every epoch.
        scorer: By :func:`ending_scorer`, for a model that is trained on right endings.
    """
    optimizer = attached.optimizer(lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    with quiet():
        trainer = SteadyTrainer(
            model=attached.model,
            args=arguments,
            data_collator=training.collate,
            train_dataset=training.examples,
            eval_dataset=evaluation.examples if evaluation is not None else None,
            processing_class=loaded.tokenizer,
            compute_metrics=_accuracy if loaded.kind in _READ_OFF else None,
            scorer=scorer,
            optimizers=(optimizer, None),
            callbacks=[*attached.callbacks()],
        )
    # Heads of classes and of choices, and masked language models, take the mean of each part by themselves.
    by_tokens = loaded.kind in ("causal", "endings")
    trainer.model_accepts_loss_kwargs = trainer.model_accepts_loss_kwargs and by_tokens
    silence(trainer)
    return trainer


def ending_scorer(loaded: Loaded, task: ChoiceTask, max_length: int) -> Scorer:
    """Scores a causal model by the likelihood of whole endings, as ``intruscope forget`` does.

    Args:
        loaded: What it was trained from.
        task: What is asked.
        max_length: Longest input in tokens.
    """
    language = as_language(loaded, max_length)

    def scored(model: Any, *, process: int, num_processes: int) -> tuple[int, int]:
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        own = replace(task, choices=task.choices[process::num_processes])
        if not own.choices:
            return 0, 0
        was_training = plain.training
        plain.eval()
        right = choose(replace(language, model=plain), own).right_N
        plain.train(was_training)
        assert right is not None
        return int(right.sum()), len(right)

    return scored


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run in its folder, from an attached method to its record.

    Attributes:
        folder: Open.
        plan: What the run is.
        base: As it was named, for the watch.
        settings: What was asked for.
        method: What is trained.
        attached: The method on the model.
        loaded: What it was put on.
        source: The base's files.
        forget_text: On which every look measures forgetting.
        replay: General text that every step also learns from.
        pictures: Draw what the watch saw.
    """

    folder: RunFolder
    plan: dict[str, Any]
    base: str
    settings: TuneSettings
    method: Method
    attached: Attached
    loaded: Loaded
    source: ModelSource
    forget_text: Sequence[str | Path]
    replay: Corpus | None
    pictures: bool

    def train(
        self,
        arguments: Any,
        training: TrainingData,
        evaluation: TrainingData | None,
        scorer: Scorer | None,
        on_progress: OnProgress,
    ) -> TuneReport:
        """Train from the last checkpoint on, save, record.

        Raises:
            IncompleteResult: the loss became NaN; the last good checkpoint is named.
            ResourceExhausted: no memory for a batch, or no room.
        """
        folder, attached = self.folder, self.attached
        trainer = trainer_for(attached, self.loaded, arguments, training, evaluation, scorer)
        watch = self._watch(trainer)
        budget = self._budget(trainer, watch)
        trainer.replay = self._replay()
        trainer.add_callback(Keeper(folder, attached.model, on_progress))
        started = time.perf_counter()
        last = folder.begin()
        with quiet(), explained(folder, batch=self.plan["batch"], max_length=self.plan["max_length"]):
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
        seconds = time.perf_counter() - started
        processes.first(self._save)
        history = trainer.state.log_history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        report = TuneReport(
            model=folder.model,
            plan=self.plan,
            steps=trainer.state.global_step,
            seconds=round(seconds, 3),
            loss=losses[-1] if losses else None,
            accuracy=tuple(entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry),
            watch=figures(watch.looks[-1]) if watch is not None else {},
            num_trained=sum(p.numel() for _, p in attached.trainable()),
            replay=_replayed(trainer),
            budget=budget.exceeded(trainer.state.max_steps) if budget is not None else (),
        )
        record = {k: v for k, v in asdict(report).items() if k not in ("plan", "model")}
        log = _finite(history)
        processes.first(lambda: folder.finish({**record, "num_cut": training.num_cut, "log": log}))
        return report

    def _save(self) -> None:
        model = self.folder.model
        if not model.exists():
            self.attached.save(model)
        with quiet():  # also where the process was killed between the two
            self.loaded.tokenizer.save_pretrained(str(model))

    def _replay(self) -> Replay | None:
        """None where nothing is replayed, or with weight 0: that is the run without it, bit for bit."""
        if self.replay is None or self.settings.replay_weight == 0.0:
            return None
        return make_replay(
            self.attached,
            self.method,
            self.loaded.tokenizer,
            self.source,
            self.replay,
            self.settings,
            batch=self.plan["batch"],
            max_length=self.plan["max_length"],
        )

    def _budget(self, trainer: Any, watch: IntruderWatch | None) -> ForgettingBudget | None:
        limit = self.settings.max_forgetting
        if watch is None or limit is None:
            return None
        budget = ForgettingBudget(watch, limit, self.settings.on_budget)
        trainer.add_callback(budget)
        return budget

    def _watch(self, trainer: Any) -> IntruderWatch | None:
        if not self.settings.watch_every:
            return None
        needs_base = bool(self.forget_text) or "moves_base" in self.method.departures
        watch = IntruderWatch(
            trainer,
            every=self.settings.watch_every,
            base=self.base if needs_base else None,
            text=list(self.forget_text) or None,
            folder=self.folder.looks,
            pictures=self.pictures,
            seed=self.settings.seed,
        )
        trainer.add_callback(watch)
        return watch


def _replayed(trainer: SteadyTrainer) -> Replayed | None:
    if trainer.replay is None:
        return None
    losses = [entry["replay_loss"] for entry in trainer.state.log_history if "replay_loss" in entry]
    return trainer.replay.record(trainer.state.global_step, losses[-1] if losses else None)


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _finite(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The log as JSON can hold it."""
    return [
        {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in entry.items()}
        for entry in history
    ]
