"""What a run is asked to do, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.train.recipes import PAPER, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What a run does; what is None is the recipe's.

    Attributes:
        method: By its name (``intruscope methods``).
        options: Of the method.
        recipe: Where everything else is from.
        rate: Learning rate.
        examples: Train on so many of the examples at most, drawn at random; on all by default.
        epochs: Passes over the data.
        steps: Optimiser steps instead.
        batch: Examples per step, of all processes and accumulated parts together.
        accumulate: Parts that a batch is taken in.
        max_length: Longest input in tokens.
        group_by_length: Take examples of about one length together, which saves padding.
        targets: Ends of the names of the modules that are changed; all linear layers by default.
        bf16: Compute in bfloat16 (weights and optimiser stay float32).
        seed: Of everything random.
        save_every: Steps between checkpoints.
        watch_every: Steps between looks for intruders; 0 for none.
        eval_every: Steps between scores of the held-out data, one before the first step among them; by
            default an epoch, and none before.
        report_to: Integrations of transformers that take the log.
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
    """What came of a run.

    Attributes:
        model: Folder of the tuned model, or of the adapter.
        plan: Everything that is needed to repeat it.
        steps: Optimiser steps.
        seconds: Of training, looks included; of the last part where it was resumed.
        loss: Mean training loss at the end (last logged).
        accuracy: On the held-out task at each evaluation, in order; empty without one.
        watch: Figures of the last look; empty without a watch.
        num_trained: Numbers that were trained.
    """

    model: Path
    plan: dict[str, Any]
    steps: int
    seconds: float
    loss: float | None
    accuracy: tuple[float, ...]
    watch: dict[str, float]
    num_trained: int
