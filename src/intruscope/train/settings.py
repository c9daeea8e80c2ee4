"""Settings and report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.options import REQUIRED, documented, option, shared
from intruscope.spectra.records import ScanSettings
from intruscope.train.recipes import PAPER, Recipe

if TYPE_CHECKING:
    from pathlib import Path


@documented
@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What a run does; what is None comes from the recipe.

    Attributes:
        options: Options of the method.
        recipe: Preset for everything that is None.
        eval_every: Steps between evaluations on the held-out data, the first before any training; by default
            after every epoch, and not before training.
    """

    method: str = option(
        REQUIRED, help="Fine-tuning method; 'intruscope methods' lists them.", metavar="METHOD"
    )
    options: Mapping[str, object] = field(default_factory=dict)
    targets: tuple[str, ...] = option(
        (),
        flag="target",
        help="Suffix of the module names to train (default: all linear layers).",
        metavar="SUFFIX",
    )
    recipe: Recipe = PAPER
    rate: float | None = option(
        None,
        flag="lr",
        help="Learning rate (default: from the recipe, which keeps alpha * lr = 2.4e-3 at every rank).",
        minimum=0,
    )
    epochs: int | None = option(
        None, help="Number of passes over the data (default: from the recipe).", minimum=1
    )
    steps: int | None = option(None, help="Number of optimizer steps, instead of --epochs.", minimum=1)
    batch: int | None = option(
        None, help="Examples per optimizer step, over all processes (default: from the recipe).", minimum=1
    )
    examples: int | None = option(
        None,
        help="Maximum number of training examples, sampled at random (default: all).",
        minimum=1,
    )
    max_length: int | None = option(
        None, help="Maximum input length in tokens (default: from the recipe).", minimum=2
    )
    watch_every: int = option(
        50,
        flag="watch",
        help="Steps between scans for intruders during training; 0 turns them off.",
        minimum=0,
    )
    eval_every: int | None = None
    seed: int = shared(ScanSettings, "seed")
    accumulate: int = option(
        1,
        help="Gradient-accumulation steps: each batch is split into this many parts.",
        minimum=1,
        panel="How it runs",
    )
    group_by_length: bool = option(
        False, help="Batch examples of similar length together to reduce padding.", panel="How it runs"
    )
    bf16: bool = option(
        False, help="Compute in bfloat16; weights and optimizer stay in float32.", panel="How it runs"
    )
    save_every: int = option(500, help="Steps between checkpoints.", minimum=1, panel="How it runs")
    report_to: tuple[str, ...] = option(
        (),
        help="Also log to a transformers integration, such as tensorboard or wandb.",
        panel="Output",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """Result of a run.

    Attributes:
        model: Folder of the tuned model, or of the adapter.
        plan: All settings needed to repeat the run.
        steps: Number of optimiser steps.
        seconds: Duration of training including looks; after a resume, of the last part.
        loss: Mean training loss at the end (last logged).
        accuracy: Accuracy on the held-out task at each evaluation; empty without one.
        watch: Figures of the last look; empty without a watch.
        num_trained: Number of trainable parameters.
    """

    model: Path
    plan: dict[str, Any]
    steps: int
    seconds: float
    loss: float | None
    accuracy: tuple[float, ...]
    watch: dict[str, float]
    num_trained: int
