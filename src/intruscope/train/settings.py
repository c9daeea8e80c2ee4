"""Settings and report of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.train.recipes import PAPER, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Settings of a run; None takes the recipe's value.

    Attributes:
        method: By its name (``intruscope methods``).
        options: Options of the method.
        recipe: Preset for hyperparameters that are not set.
        rate: Learning rate.
        examples: Maximum number of training examples, sampled at random; all by default.
        epochs: Passes over the data.
        steps: Number of optimiser steps, instead of epochs.
        batch: Examples per optimiser step, over all processes and accumulation steps.
        accumulate: Gradient-accumulation steps.
        max_length: Longest input in tokens.
        group_by_length: Batch examples of similar length, which saves padding.
        targets: Module-name suffixes to train; all linear layers by default.
        bf16: Compute in bfloat16 (weights and optimiser stay float32).
        seed: Random seed.
        save_every: Steps between checkpoints.
        watch_every: Steps between looks for intruders; 0 for none.
        eval_every: Steps between scores of the held-out data, one before the first step among them; by
            default an epoch, and none before.
        report_to: Integrations of transformers to log to.
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    recipe: Recipe = PAPER
    rate: float | None = None
    examples: int | None = None
    epochs: int | None = None
    steps: int | None = None
    batch: int | None = None
    accumulate: int = 1
    max_length: int | None = None
    group_by_length: bool = False
    targets: tuple[str, ...] = ()
    bf16: bool = False
    seed: int = 0
    save_every: int = 500
    watch_every: int = 50
    eval_every: int | None = None
    report_to: tuple[str, ...] = ()


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
