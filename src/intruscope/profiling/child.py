"""What the process of one setting does: get ready, take its first steps, and take some more when it is woken.

Served by :mod:`intruscope.engine.worker`. What goes wrong with one setting is an answer, not the end of the
profile; a base that cannot be read is an error, as it is the same for all.
"""

from __future__ import annotations

import gc
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from intruscope.adapters.live_models import build, config_of, quiet, read_tensors
from intruscope.errors import IntruscopeError, printable
from intruscope.methods.attached import adamw
from intruscope.methods.contract import Setting
from intruscope.methods.registry import find
from intruscope.methods.targets import kind_of, trained_whole
from intruscope.profiling.heads import head_of, last_blocks
from intruscope.profiling.memory import MemoryMeter
from intruscope.profiling.records import Build, Built, Failed, Phases, Visit, Warm, Warmed
from intruscope.profiling.stepping import RATE, TOTAL_STEPS, TrainingSteps, random_batches, timed_step
from intruscope.train.trainer import allocation_asked
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer
    from transformers import TrainerCallback

    from intruscope.profiling.records import Candidate, Shape

_READY: dict[str, _Ready] = {}
"""The one setting of this process, once it is built."""
_FIRST_BATCHES = 16


def answer(request: Build | Warm | Visit) -> Built | Warmed | Phases | Failed:
    """Do what is asked.

    Raises:
        IntruscopeError: the base cannot be read.
    """
    try:
        if isinstance(request, Build):
            _READY["it"] = _Ready(request)
            return _READY["it"].built
        return _READY["it"].warm(request) if isinstance(request, Warm) else _READY["it"].visit(request)
    except _Unfit as error:
        return Failed(_said(error.cause))
    except Exception as error:  # whatever a method's layers provoke in there, or no memory
        if isinstance(request, Build) and isinstance(error, IntruscopeError):
            raise  # of the base
        return Failed(_said(error))


class _Unfit(Exception):
    """A method does not go with this model."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def _said(error: Exception) -> str:
    wanted = allocation_asked(error)
    if wanted is not None:
        return "no memory" + (f" ({wanted})" if wanted else "")
    if isinstance(error, IntruscopeError):
        return f"{error.tensor + ': ' if error.tensor else ''}{error.fact}; {error.remedy}"
    return f"{type(error).__name__}: {printable(error)}"


class _Ready:
    """A model with a method on it, ready to train.

    Args:
        request: What it is.
    """

    def __init__(self, request: Build) -> None:
        self._request = request
        settings = request.settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        gc.freeze()  # what was imported is no garbage, and takes long to be looked through
        self._meter = MemoryMeter(settings.device)
        runtime = self._meter.now()
        model, drawn = self._load()
        loaded = self._meter.now()
        try:
            optimizer, callbacks, num_matrices = self._attach(model, drawn)
        except Exception as error:  # whatever PEFT provokes in there
            raise _Unfit(error) from error
        self.built = Built(
            num_trained=sum(p.numel() for p in self._model.parameters() if p.requires_grad),
            num_matrices=num_matrices,
            runtime_bytes=runtime,
            loaded_bytes=loaded,
        )
        self._steps = TrainingSteps(
            self._model, optimizer, callbacks, device=settings.device, bf16=settings.bf16
        )
        self._batches = {shape: self._random(shape) for shape in request.shapes}
        # What the start took is none of the steps' business.
        self._meter.now()

    def _load(self) -> tuple[nn.Module, tuple[str, ...]]:
        """The model in float32, and layers of its body that the base lacks."""
        source = open_model(str(self._request.base), allow_pickle=self._request.allow_pickle)
        config = config_of(source)
        self._config = config
        # What the plan said: "auto" was resolved there.
        asked = "classifier" if self._request.head == "classifier" else "language"
        cls, _ = head_of(config, asked, file=source.on_disk)
        if asked == "classifier":
            config.problem_type = None
            config.pad_token_id = config.pad_token_id or 0  # some find a sequence's end by it
        torch.manual_seed(self._request.settings.seed)
        built, missing = build(cls, config, read_tensors(source), dtype=torch.float32, file=source.path)
        model: Any = built
        # PEFT would ask the hub for the config of a base without a name.
        model.name_or_path = model.config._name_or_path = str(source.on_disk.resolve())
        model.to(self._request.settings.device)
        body = f"{model.base_model_prefix}."
        drawn = dict.fromkeys(name.rpartition(".")[0] for name in sorted(missing) if name.startswith(body))
        return model, tuple(drawn)

    def _attach(self, model: Any, drawn: tuple[str, ...]) -> tuple[Optimizer, Sequence[TrainerCallback], int]:
        settings, candidate = self._request.settings, self._request.candidate
        batches = [
            # EVA takes only the tokens that a loss is of, where there are labels: of a masked model, few.
            {name: tensor for name, tensor in batch.items() if name != "labels"}
            for batch in islice(self._random(self._request.shapes[-1]), _FIRST_BATCHES)
        ]
        setting = Setting(
            targets=candidate.targets,
            train_whole=drawn,
            total_steps=TOTAL_STEPS,
            batches=batches,
            kept=batches,
            seed=settings.seed,
        )
        if candidate.method is None:
            names = _train_last(model, candidate, setting)
            self._model: nn.Module = model
            trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            optimizer = adamw(trainable, lr=RATE, weight_decay=0.0)
            callbacks: Sequence[TrainerCallback] = ()
        else:
            method = find(candidate.method)
            attached = method.attach(model, setting, dict(candidate.options))
            if "trains_base" in method.departures:
                _set_embeddings(model, trained=settings.train_embeddings)
            # What is attached keeps copies of weights to take updates against. They are no part of training,
            # and go with it.
            self._model, names = attached.model, attached.names
            optimizer, callbacks = attached.optimizer(lr=RATE), attached.callbacks()
        trained: Any = self._model
        trained.config.use_cache = False  # as in transformers' Trainer
        if settings.gradient_checkpointing:
            with quiet():
                trained.gradient_checkpointing_enable({"use_reentrant": False})
        trained.train()
        return optimizer, callbacks, len(names)

    def _random(self, shape: Shape) -> Any:
        settings = self._request.settings
        return random_batches(
            self._config, self._request.head, shape, device=settings.device, seed=settings.seed
        )

    def warm(self, request: Warm) -> Warmed:
        """The first steps of a shape."""
        self._meter.restart()
        for _ in range(request.num_steps):
            phases = self._step(request.shape)
        if not torch.isfinite(torch.tensor(self._steps.loss)):
            raise FloatingPointError("the loss is no number after the first steps")
        peak = self._meter.peak()
        tensors = self._meter.tensor_peak(lambda: self._step(request.shape), self._steps.held())
        return Warmed(step_seconds=phases.step, peak_bytes=peak, tensor_bytes=tensors)

    def visit(self, request: Visit) -> Phases:
        """Mean seconds of the steps that count."""
        for _ in range(request.num_lead):
            self._step(request.shape)
        taken = [self._step(request.shape) for _ in range(request.num_steps)]
        return Phases(*(sum(seconds) / len(taken) for seconds in zip(*taken, strict=True)))

    def _step(self, shape: Shape) -> Phases:
        return timed_step(self._steps, next(self._batches[shape]), time.perf_counter)


def _set_embeddings(model: nn.Module, *, trained: bool) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.requires_grad_(trained)


def _train_last(model: nn.Module, candidate: Candidate, setting: Setting) -> tuple[str, ...]:
    """Train the last blocks, and what every method trains whole; the rest is frozen."""
    assert candidate.last_layers is not None
    names = last_blocks(model, candidate.last_layers)
    whole = (*names, *trained_whole(model, setting))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{module}.") for module in whole))
    return tuple(
        name
        for name, module in model.named_modules()
        if any(name.startswith(f"{block}.") for block in names) and kind_of(module) in ("linear", "conv1d")
    )
