"""What a study runs, as data: every run and chain by its settings, and a key made of nothing else.

Two recipes that ask for the same settings ask for the same run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from intruscope.engine.journal import plan_hash

Options = tuple[tuple[str, float], ...]
_KEY_CHARS = 16
_SEEDS_PER_SET = 100


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, and everything that is measured of it.

    Attributes:
        base: Name of the base within its scale.
        task: Name of the task.
        method: Fine-tuning method.
        options: Options of the method by name; others keep the method's defaults.
        rate: Learning rate.
        seed: Seed of the choice and order of examples, the head and the method's start.
        examples: Maximum number of training examples, sampled with the seed.
        epochs: Passes over them.
        batch: Examples per step.
        max_length: Longest input in tokens.
        bf16: Train in bfloat16 autocast.
        group_by_length: Batch examples of similar length.
        look_every: Steps between looks at intruders, forgetting and held-out loss; 0 for none.
        interventions: Whether the sweep of interventions is part of what is measured.
    """

    base: str
    task: str
    method: str
    options: Options
    rate: float
    seed: int
    examples: int
    epochs: int
    batch: int
    max_length: int
    bf16: bool
    group_by_length: bool
    look_every: int
    interventions: bool

    @property
    def key(self) -> str:
        """Stable across machines and versions: a hash of the canonical JSON of the settings."""
        return _key("run", self)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Training on task after task, the update merged in between.

    Attributes:
        base: Name of the base within its scale.
        tasks: In the order of training.
        method: Fine-tuning method.
        options: Options of the method.
        rate: Learning rate.
        seed: Seed of the chain.
        examples: Training examples of each task.
        head_examples: Number of examples a task's head is fitted on.
        eval_examples: Number of examples a task is scored on; None for all.
        epochs: Passes over each task.
        batch: Examples per step.
        max_length: Longest input in tokens.
        bf16: Train in bfloat16 autocast.
        group_by_length: Batch examples of similar length.
    """

    base: str
    tasks: tuple[str, ...]
    method: str
    options: Options
    rate: float
    seed: int
    examples: int
    head_examples: int
    eval_examples: int | None
    epochs: int
    batch: int
    max_length: int
    bf16: bool
    group_by_length: bool

    @property
    def key(self) -> str:
        """As that of a run."""
        return _key("chain", self)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A fine-tune that others published: it is scanned, not trained.

    Attributes:
        base: Hub name of the base.
        tuned: Hub name of the tuned model or adapter.
        task: Task it was trained on.
        arm: Its arm in a study.
    """

    base: str
    tuned: str
    task: str
    arm: str

    @property
    def key(self) -> str:
        """As that of a run."""
        return _key("checkpoint", self)


@dataclass(frozen=True, kw_only=True)
class MergeSet:
    """One adapter for each of several tasks, and every merge of them.

    Attributes:
        base: Name of the base within its scale.
        tasks: In the order in which merges grow: the merge of T adapters has the first T.
        method: Fine-tuning method of every adapter.
        options: Options of the method.
        rate: Learning rate.
        seed: Seed of the set.
        same_start: Whether all adapters are trained with the set's own seed, so that they start from the same
            random factors; otherwise each has a seed of its own.
        steps: Optimizer steps of each adapter, in the order of the tasks.
        batch: Examples per step.
        max_lengths: Longest input of each task in tokens.
        bf16: Train in bfloat16 autocast.
        score_bf16: Measure tasks and forgetting in bfloat16, weights included; adapters and the base alike.
        held_out: Held-out examples of a task, or sequences of a text.
        choosing_every: The strength of a merge is chosen on one held-out example in this many, and its score
            is reported on the others.
        text_sequences: Number of sequences of the text on which forgetting is measured.
        sizes: Numbers of adapters that are merged, T.
        strengths: Factors of the merged update that are tried, beside 1/T.
    """

    base: str
    tasks: tuple[str, ...]
    method: str
    options: Options
    rate: float
    seed: int
    same_start: bool
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

    @property
    def key(self) -> str:
        """As that of a run."""
        return _key("mergeset", self)

    @property
    def part_seeds(self) -> tuple[int, ...]:
        """The seed of each adapter."""
        if self.same_start:
            return (self.seed,) * len(self.tasks)
        return tuple(_SEEDS_PER_SET * (self.seed + 1) + place for place in range(len(self.tasks)))


Work = Run | Chain | Checkpoint | MergeSet


def _key(kind: str, work: Work) -> str:
    return plan_hash({"kind": kind, **asdict(work)})[:_KEY_CHARS]


def settings_of(work: Work) -> dict[str, Any]:
    """The settings as plain data, with what kind of work it is."""
    found = {"kind": type(work).__name__.lower(), **asdict(work)}
    if not isinstance(work, Checkpoint):
        found["options"] = dict(work.options)
    return found


def label_of(work: Work) -> str:
    """A few words, for progress and errors."""
    if isinstance(work, Checkpoint):
        return work.tuned
    where = work.task if isinstance(work, Run) else "-".join(work.tasks)
    if isinstance(work, MergeSet) and work.same_start:
        where += " from one start"
    options = "".join(f" {name} {value:g}" for name, value in work.options)
    return f"{where}, {work.method}{options}, rate {work.rate:g}, seed {work.seed}"
