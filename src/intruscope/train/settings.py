"""Settings and report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from intruscope.options import REQUIRED, documented, option, shared
from intruscope.spectra.records import ScanSettings
from intruscope.train.recipes import PAPER, Recipe

if TYPE_CHECKING:
    from pathlib import Path

ReplayTarget = Literal["text", "base"]
OnBudget = Literal["stop", "lower-rate"]


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
    replay_weight: float = option(
        0.3,  # most of the effect at little cost (docs/tune.md)
        help="Weight of the loss on the replayed text, which is added to the loss on the task.",
        minimum=0,
        needs=("--replay",),
    )
    replay_target: ReplayTarget = option(
        "text",
        help="What is learned from the replayed text: its words (text), or the base's predictions of them "
        "(base; by KL divergence).",
        needs=("--replay",),
    )
    max_forgetting: float | None = option(
        None,
        flag="max-forgetting",
        help="Forgetting budget in nats per token on --forget-text, checked at each scan during training.",
        minimum=0,
    )
    on_budget: OnBudget = option(
        "stop",
        help="What happens above the budget: training stops, or each scan above it halves the learning rate.",
        needs=("--max-forgetting",),
    )
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
class Replayed:
    """General text that a run replayed.

    Attributes:
        text: Names of its sources.
        sha256: Hash of all its documents.
        target: What was learned from it: its own words, or the base's predictions.
        weight: Weight of its loss.
        num_sequences: Number of sequences that the text was cut into.
        num_tokens: Number of tokens in them that can be predicted.
        num_replayed: Number of sequences that the run replayed; one counts as often as it was replayed.
        num_predicted: Number of tokens predicted in them.
        loss: Mean loss on it in nats per token at the end (last logged), or the mean KL divergence; after
            training has begun.
    """

    text: tuple[str, ...]
    sha256: str
    target: ReplayTarget
    weight: float
    num_sequences: int
    num_tokens: int
    num_replayed: int = 0
    num_predicted: int = 0
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetExceeded:
    """A look that found more forgetting than the budget allows.

    Attributes:
        step: Number of optimiser steps done.
        forgetting: Rise of the loss on the text since the first look, in nats per token.
        low, high: Bounds of its 95% interval, by a paired bootstrap over the sequences; None if the losses of
            the sequences are not known.
        action: What was done; ``none`` at the end of training.
    """

    step: int
    forgetting: float
    low: float | None
    high: float | None
    action: Literal["stopped", "rate halved", "none"]


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
        replay: The text that was replayed; None without one.
        budget: The looks above the forgetting budget, in order.
    """

    model: Path
    plan: dict[str, Any]
    steps: int
    seconds: float
    loss: float | None
    accuracy: tuple[float, ...]
    watch: dict[str, float]
    num_trained: int
    replay: Replayed | None = None
    budget: tuple[BudgetExceeded, ...] = ()
