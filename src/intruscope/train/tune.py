"""Train a model by any method on a task or on text, durably: thin on transformers' Trainer.

accelerate comes with it (several processes, FSDP), and so do gradient accumulation, ``report_to`` and exact
resuming. What is here chooses the model's class, the data and the recipe, and keeps a record of the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, TrainingArguments, set_seed

from intruscope.adapters.live_loading import tokenizer_folder
from intruscope.adapters.live_models import (
    build,
    class_for,
    config_of,
    language_class,
    max_context,
    quiet,
    read_tensors,
)
from intruscope.adapters.live_tokenizers import choose_tokenizers
from intruscope.errors import UnsupportedFormat, UsageError
from intruscope.forgetting.tasks import ClassificationTask, Task
from intruscope.methods.contract import Setting
from intruscope.methods.registry import find
from intruscope.spectra.scan import environment
from intruscope.train.data import TrainingData, classification_data, label_names, text_data
from intruscope.train.look_file import figures
from intruscope.train.run_folder import RunFolder
from intruscope.train.settings import TuneReport, TuneSettings
from intruscope.train.trainer import Keeper, SteadyTrainer, explained, silence
from intruscope.train.watch import IntruderWatch
from intruscope.weights.source import ModelSource, open_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from intruscope.forgetting.texts import Corpus
    from intruscope.methods.contract import Attached, Method, Options

_LAB = ("transformers", "peft", "accelerate")


def tune(
    base: str,
    *,
    out: Path,
    settings: TuneSettings,
    data: Task | Corpus,
    held_out: Task | None = None,
    forget_text: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
    allow_pickle: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> TuneReport:
    """Train a model; run again after an interruption, it goes on from its last checkpoint.

    Args:
        base: Model before: a path or ``org/name@revision``.
        out: Folder of the run.
        settings: What is done.
        data: A classification task, or text for a language model.
        held_out: A classification task with the same labels, scored after every epoch.
        forget_text: Text on which the watch measures forgetting.
        tokenizer: Folder of one; the base's by default.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called with a stage, what is done of it, and all there is.

    Raises:
        UsageError: settings that make no sense, an unknown method or option, no target, no learning rate.
        MalformedInput: data or model are damaged, or a label is unknown.
        OutputConflict: the folder holds something else.
        IncompleteResult: the loss became NaN; the last good checkpoint is named.
        ResourceExhausted: no memory for a batch, or no room.
    """
    method = find(settings.method)
    if "no_training" in method.departures:
        fact = f"got the method {method.name}, which computes an update and trains nothing"
        raise UsageError(fact, remedy="use it from Python: see intruscope methods")
    options = method.options(settings.recipe.completed(method, dict(settings.options)))
    source = open_model(base, allow_pickle=allow_pickle)
    held_out = _checked_held_out(held_out, data)
    plan = _plan(source, settings, method, options, data, held_out, forget_text)
    with RunFolder(out, plan) as folder:
        loaded = _loaded(source, settings, data, tokenizer)
        training, evaluation = _encoded(loaded, data, held_out, plan["max_length"])
        arguments = _arguments(folder, settings, plan, len(training.examples), evaluates=held_out is not None)
        attached = _attached(loaded, settings, method, options, training, arguments)
        run = _Run(folder, settings, plan, method, attached, loaded, forget_text, base)
        return run.train(arguments, training, evaluation, on_progress)


def _checked_held_out(held_out: Task | None, data: Task | Corpus) -> Task | None:
    if held_out is not None and not isinstance(data, ClassificationTask):
        raise UsageError(
            "got a held-out task for a run on text, expected one only beside --task",
            remedy="leave --eval out, and measure afterwards with intruscope forget",
        )
    return held_out


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A model on which nothing is attached yet; ``drawn`` are layers of the body that the base lacks."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    kind: str
    drawn: tuple[str, ...]


def _loaded(source: ModelSource, settings: TuneSettings, data: Any, tokenizer: Any) -> _Loaded:
    """The model in float32 with the head that the data needs; a new head is drawn from the seed."""
    config = config_of(source)
    labels: tuple[str, ...] = ()
    kind: str = "classification"
    if isinstance(data, ClassificationTask):
        labels = label_names(data)
        found = class_for(AutoModelForSequenceClassification, config)
        if found is None:
            raise UnsupportedFormat(
                f"got the model type {config.model_type}, expected one with a classifier in transformers",
                remedy="train it on text with --text",
                file=source.path,
            )
        cls = found
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    else:
        cls, kind = language_class(config, file=source.path)
    words, _ = choose_tokenizers(tokenizer, tokenizer_folder(source), None)
    if words.pad_token is None:
        words.pad_token = words.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = words.pad_token_id
    set_seed(settings.seed)
    model, missing = build(cls, config, read_tensors(source), dtype=torch.float32, file=source.path)
    # An adapter names its base by this.
    named: Any = model
    named.name_or_path = source.name if source.revision is not None else str(source.path.resolve())
    named.config._name_or_path = named.name_or_path
    # Whoever loads an adapter draws a pooler of his own, unless this one is trained whole and saved with it.
    body = f"{named.base_model_prefix}."
    drawn = dict.fromkeys(name.rpartition(".")[0] for name in sorted(missing) if name.startswith(body))
    return _Loaded(model=model, tokenizer=words, labels=labels, kind=kind, drawn=tuple(drawn))


def _encoded(
    loaded: _Loaded, data: Any, held_out: Task | None, max_length: int
) -> tuple[TrainingData, TrainingData | None]:
    limit = max_context(loaded.model, loaded.tokenizer)
    max_length = min(max_length, limit) if limit is not None else max_length
    if not isinstance(data, ClassificationTask):
        kind: Any = loaded.kind
        corpus = data.corpus if hasattr(data, "corpus") else data
        return text_data(corpus, loaded.model, loaded.tokenizer, kind, max_length), None
    training = classification_data(data, loaded.labels, loaded.tokenizer, max_length)
    if held_out is None:
        return training, None
    assert isinstance(held_out, ClassificationTask)
    return training, classification_data(held_out, loaded.labels, loaded.tokenizer, max_length)


def _plan(
    source: ModelSource,
    settings: TuneSettings,
    method: Method,
    options: Options,
    data: Any,
    held_out: Any,
    forget_text: Sequence[str | Path],
) -> dict[str, Any]:
    """Everything that can change the result, with every default filled in."""
    recipe = settings.recipe
    given = asdict(settings)
    return {
        "base": source.name,
        "base_revision": source.revision,
        "base_files": list(source.inputs),
        "method": method.name,
        "options": options,
        "recipe": recipe.name,
        "rate": settings.rate if settings.rate is not None else recipe.rate(method, options),
        "epochs": None if settings.steps is not None else settings.epochs or recipe.epochs,
        "steps": settings.steps,
        "batch": settings.batch or recipe.batch,
        "max_length": settings.max_length or recipe.max_length,
        "schedule": recipe.schedule,
        "warmup": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "embeddings": "frozen" if "trains_base" in method.departures else "as the method leaves them",
        **{name: given[name] for name in ("accumulate", "bf16", "seed", "save_every", "watch_every")},
        "targets": list(settings.targets) or "all-linear",
        "data_sha256": data.sha256,
        "held_out_sha256": held_out.sha256 if held_out is not None else None,
        "forget_text": [str(name) for name in forget_text],
        "environment": environment() | _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in _LAB}


def _arguments(
    folder: RunFolder, settings: TuneSettings, plan: Mapping[str, Any], num_examples: int, *, evaluates: bool
) -> Any:
    if plan["batch"] % settings.accumulate:
        raise UsageError(
            f"got a batch of {plan['batch']} in {settings.accumulate} parts, expected parts of one size",
            remedy="change --batch or --accumulate",
        )
    part = plan["batch"] // settings.accumulate
    steps_per_epoch = math.ceil(num_examples / (plan["batch"] * _num_processes()))
    steps = settings.steps or plan["epochs"] * steps_per_epoch
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=part,
        per_device_eval_batch_size=4 * part,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=plan["rate"],
        lr_scheduler_type=plan["schedule"],
        warmup_steps=math.ceil(plan["warmup"] * steps),
        weight_decay=plan["weight_decay"],
        bf16=settings.bf16,
        use_cpu=not torch.accelerator.is_available(),
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=2,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=steps_per_epoch,
        logging_steps=max(1, min(50, steps // 20)),
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=True,
    )


def _num_processes() -> int:
    from accelerate import PartialState  # type: ignore[import-untyped]

    return int(PartialState().num_processes)


def _attached(
    loaded: _Loaded,
    settings: TuneSettings,
    method: Method,
    options: Options,
    training: TrainingData,
    arguments: Any,
) -> Attached:
    setting = Setting(
        targets=settings.targets or "all-linear",
        train_whole=loaded.drawn,
        total_steps=arguments.max_steps,
        batches=training.batches(arguments.per_device_train_batch_size),
        seed=settings.seed,
    )
    attached = method.attach(loaded.model, setting, options)
    if "trains_base" in method.departures:
        for module in loaded.model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.requires_grad_(False)
    return attached


class _Run:
    """One run, from an attached method to its record."""

    def __init__(
        self,
        folder: RunFolder,
        settings: TuneSettings,
        plan: dict[str, Any],
        method: Method,
        attached: Attached,
        loaded: _Loaded,
        forget_text: Sequence[str | Path],
        base: str,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._plan = plan
        self._method = method
        self._attached = attached
        self._loaded = loaded
        self._forget_text = list(forget_text)
        self._base = base

    def train(
        self,
        arguments: Any,
        training: TrainingData,
        evaluation: TrainingData | None,
        on_progress: Callable[[str, int, int], None],
    ) -> TuneReport:
        """Train, save, record."""
        folder, attached = self._folder, self._attached
        optimizer = attached.optimizer(lr=self._plan["rate"], weight_decay=self._plan["weight_decay"])
        with quiet():
            trainer = SteadyTrainer(
                model=attached.model,
                args=arguments,
                data_collator=training.collate,
                train_dataset=training.examples,
                eval_dataset=evaluation.examples if evaluation is not None else None,
                processing_class=self._loaded.tokenizer,
                compute_metrics=_accuracy if evaluation is not None else None,
                optimizers=(optimizer, None),
                callbacks=[*attached.callbacks()],
            )
        silence(trainer)
        watch = self._watch(trainer)
        trainer.add_callback(Keeper(folder, attached.model, on_progress))
        started = time.perf_counter()
        last = folder.last_checkpoint()
        if last is None:
            folder.start_over()
        with quiet(), explained(folder, batch=self._plan["batch"], max_length=self._plan["max_length"]):
            trainer.train(resume_from_checkpoint=str(last) if last is not None else None)
        seconds = time.perf_counter() - started
        if not folder.model.exists():
            attached.save(folder.model)
            with quiet():
                self._loaded.tokenizer.save_pretrained(str(folder.model))
        history = trainer.state.log_history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        report = TuneReport(
            model=folder.model,
            plan=self._plan,
            steps=trainer.state.global_step,
            seconds=round(seconds, 3),
            loss=losses[-1] if losses else None,
            accuracy=tuple(entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry),
            watch=figures(watch.looks[-1]) if watch is not None else {},
            num_trained=sum(p.numel() for _, p in attached.trainable()),
        )
        record = {k: v for k, v in asdict(report).items() if k not in ("plan", "model")}
        folder.finish({**record, "num_cut": training.num_cut, "log": _finite(history)})
        return report

    def _watch(self, trainer: Any) -> IntruderWatch | None:
        if not self._settings.watch_every:
            return None
        needs_base = bool(self._forget_text) or "moves_base" in self._method.departures
        watch = IntruderWatch(
            trainer,
            every=self._settings.watch_every,
            base=self._base if needs_base else None,
            text=self._forget_text or None,
            folder=self._folder.looks,
            seed=self._settings.seed,
        )
        trainer.add_callback(watch)
        return watch


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _finite(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The log as JSON can hold it."""
    return [
        {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in entry.items()}
        for entry in history
    ]
