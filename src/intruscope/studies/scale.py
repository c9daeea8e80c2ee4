"""What a scale is made of: bases with their rates, texts and tasks, and what the studies of a base take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.studies.grid import Checkpoint

SHIPPED, GROWN, MADE = "shipped", "grown", "made"
"""Sources of a base that are no files of a data folder and no name of the hub."""
_IN_DATA = ("models/", "text/")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of one base.

    Attributes:
        lora: By rank, at alpha twice the rank; the largest rank is full width.
        low, high: Learning rates of LoRA at rank 8 in the study of rates.
        full: Learning rate of full fine-tuning.
        full_lowest, full_low, full_high: Learning rates of full fine-tuning in the study of rates.
        vera: Learning rate of VeRA, which trains only vectors.
        source: Where the rates come from.
    """

    lora: Mapping[int, float]
    low: float
    high: float
    full: float
    full_lowest: float
    full_low: float
    full_high: float
    vera: float
    source: str

    @property
    def width(self) -> int:
        """The rank of full width."""
        return max(self.lora)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds on one core, about; every run notes what it took.

    Attributes:
        training: Cost of training one run on all its examples, mean over tasks.
        measuring: Cost of measuring one run.
        looks: Additional cost of a run's looks.
        interventions: Additional cost of a run's interventions.
        chain: Cost of one chain.
        merge_set: Cost of one set of adapters with all its merges.
        full_width: Cost factor of LoRA at full width.
    """

    training: float
    measuring: float
    looks: float
    interventions: float
    chain: float = 0.0
    merge_set: float = 0.0
    full_width: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The sequential study of a base.

    Attributes:
        tasks: In the order of training.
        examples: Number of training examples of each task.
        head_examples: Number of examples each head is fitted on.
        eval_examples: Number of examples each task is scored on; None for all.
    """

    tasks: tuple[str, ...]
    examples: int
    head_examples: int
    eval_examples: int | None


@dataclass(frozen=True, kw_only=True)
class Merging:
    """The study of merging on a base; every setting as in :class:`intruscope.studies.grid.MergeSet`.

    Attributes:
        tasks: In the order in which merges grow.
        rate: Learning rate of LoRA at rank 8.
        steps: Optimizer steps of each adapter, in the order of the tasks.
        batch: Examples per step.
        max_lengths: Longest input of each task in tokens.
        bf16: Train in bfloat16 autocast.
        score_bf16: Measure in bfloat16, which on the shipped model changes forgetting by .001 nats.
        held_out: Held-out examples of a task, or sequences of a text.
        choosing_every: Strengths are chosen on one of them in this many.
        text_sequences: Number of sequences of the text.
        sizes: Numbers of adapters that are merged.
        strengths: Factors that are tried beside 1/T.
        same_start: Number of tasks, the first ones, that also have adapters that start from the same factors.
        texts: Files within the data folder, by the tasks that are text to be learned from them.
    """

    tasks: tuple[str, ...]
    rate: float
    steps: tuple[int, ...]
    batch: int
    max_lengths: tuple[int, ...]
    bf16: bool
    score_bf16: bool
    held_out: int
    choosing_every: int
    text_sequences: int
    sizes: tuple[int, ...]
    strengths: tuple[float, ...]
    same_start: int
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model that runs start from, and how they are trained and measured.

    Attributes:
        name: Short; part of every run's key.
        source: A path within the data folder, a name of the hub, ``shipped`` with the package, ``grown`` as
            the shipped one was, or ``made`` from a configuration.
        kind: Of the language model. Tasks of a masked one are classification or choices; a causal one is
            trained on text of its own.
        examples: Number of training examples by task.
        text: Of forgetting, within the data folder; empty where the base brings its own.
        rates: Learning rates.
        epochs: Passes over the data.
        batch: Examples per step.
        max_length: Longest input in tokens.
        bf16: Train in bfloat16 autocast.
        group_by_length: Batch examples of similar length.
        look_every: Steps between looks of the runs that are watched.
        look_examples: Held-out examples of which a look takes the loss; of text, documents.
        text_sequences: Of the text, that forgetting is measured on; None for all.
        sweep_sequences: Of the text, for the interventions.
        sweep_examples: Of the held-out task, for the interventions.
        turns: The sequential study, if there is one.
        merging: The study of merging, if there is one.
        only: Of tasks that take part in some studies only, which, by recipe.
        cost: Cost of its runs; None if unknown.
    """

    name: str
    source: str
    kind: Literal["masked", "causal"]
    examples: Mapping[str, int]
    text: tuple[str, ...]
    rates: Rates
    epochs: int
    batch: int
    max_length: int
    bf16: bool
    look_every: int
    look_examples: int
    text_sequences: int | None
    sweep_sequences: int
    sweep_examples: int
    turns: Turns | None = None
    merging: Merging | None = None
    cost: Cost | None = None
    group_by_length: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def takes_part(self, task: str, recipe: str) -> bool:
        """Whether a study has runs on a task of this base."""
        return recipe in self.only.get(task, (recipe,))

    @property
    def tasks(self) -> tuple[str, ...]:
        """That it is trained on."""
        return tuple(self.examples)

    @property
    def every_task(self) -> tuple[str, ...]:
        """Those, and what only the sequential study or that of merging uses."""
        others = [part.tasks for part in (self.turns, self.merging) if part is not None]
        return tuple(dict.fromkeys([*self.tasks, *(task for tasks in others for task in tasks)]))

    @property
    def files(self) -> tuple[str, ...]:
        """What of a data folder it needs."""
        texts = self.merging.texts.values() if self.merging is not None else ()
        return tuple(name for name in (self.source, *self.text, *texts) if name.startswith(_IN_DATA))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size of the studies.

    Attributes:
        name: Name on the command line.
        bases: Each with its tasks.
        seeds: Seeds of every run.
        checkpoints: Published fine-tunes that are scanned, not trained. Their names are as the organisation
            forms them; no hub was in reach to check them.
    """

    name: str
    bases: tuple[Base, ...]
    seeds: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...] = ()

    def base(self, name: str) -> Base:
        """A base by its name."""
        return next(base for base in self.bases if base.name == name)
