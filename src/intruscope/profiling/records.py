"""What a profile is asked for, what is said between the processes, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from intruscope.options import documented, option, shared
from intruscope.spectra.records import ScanSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.forgetting.intervals import Interval
    from intruscope.methods.contract import Options

SCHEMA = "intruscope.profile/1"
FULL, NULL = "full", "full-again"
"""Names of full fine-tuning, and of the same a second time in a process of its own."""
PHASES = ("forward", "backward", "optimizer")
HeadKind = Literal["classifier", "causal", "masked"]
StepVerdict = Literal["faster", "slower", "alike", "undecided"]
Outcome = Literal["faster", "not-faster", "undecided", "noisy", "too-few-rounds", "no-full"]


class Shape(NamedTuple):
    """Sequences of a batch, and tokens of each."""

    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length


class ProfileCell(NamedTuple):
    """One setting at one shape."""

    setting: str
    shape: Shape


class Phases(NamedTuple):
    """Seconds of the parts of a step."""

    forward: float
    backward: float
    optimizer: float

    @property
    def step(self) -> float:
        """All of it."""
        return self.forward + self.backward + self.optimizer


@documented
@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """What is measured, and how; what is None is chosen by the model."""

    methods: tuple[str, ...] | None = option(
        None,
        flag="method",
        help="Method to compare with full fine-tuning (default: lora and melora).",
        metavar="METHOD",
    )
    ranks: tuple[int, ...] | None = option(
        None,
        flag="rank",
        help="Rank to try. The first is the reference, from which one setting at a time is varied.",
        minimum=1,
    )
    targets: tuple[str, ...] | None = option(
        None,
        help="Modules to train: all-linear, attention, query-value, or suffixes of module names separated by "
        "commas.",
        metavar="NAME",
    )
    dropouts: tuple[float, ...] | None = option(
        None, flag="dropout", help="Adapter dropout to try.", minimum=0, maximum=0.99
    )
    last_layers: tuple[int, ...] | None = option(
        None, help="Also try training only the last N transformer blocks.", metavar="N"
    )
    every_combination: bool = option(
        False,
        flag="all-combinations",
        help="Measure every combination of rank, targets and dropout (default: vary one at a time).",
    )
    batches: tuple[int, ...] = option((16,), flag="batch", help="Sequences per batch.", minimum=1)
    lengths: tuple[int, ...] = option((128,), flag="length", help="Tokens per sequence.", minimum=2)
    head: Literal["auto", "language", "classifier"] = option(
        "auto", help="Training objective: language modelling, classification, or whichever fits the model."
    )
    train_embeddings: bool = option(False, help="Let full fine-tuning also train the embeddings.")
    gradient_checkpointing: bool = option(
        False, help="Recompute activations in the backward pass instead of storing them."
    )
    bf16: bool = option(False, help="Compute in bfloat16; weights and optimizer stay in float32.")
    seconds: float = option(
        600.0, help="Time limit for the whole measurement in seconds.", above=0, panel="How it runs"
    )
    precision: float = option(
        0.02,
        help="Stop early once the interval of every ratio is at most this fraction wide to each side.",
        above=0,
        panel="How it runs",
    )
    device: str = option(
        "auto",
        help="Device to train on: auto (a GPU if there is one), cpu, cuda, or a torch device like cuda:1.",
        panel="How it runs",
        metavar="DEVICE",
    )
    threads: int | None = option(
        None, help="Threads per process (default: chosen by torch).", minimum=1, panel="How it runs"
    )
    seed: int = shared(ScanSettings, "seed")

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """By rising number of tokens: the memory that a larger one took is not there for a smaller one."""
        found = {Shape(batch, length) for batch in self.batches for length in self.lengths}
        return tuple(sorted(found, key=lambda shape: (shape.tokens, shape)))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to train.

    Attributes:
        name: Unique name.
        label: Label in tables and pictures.
        method: Of the registry; None for the last blocks alone.
        options: All options of the method.
        target_set: The requested set of targets.
        targets: Names of modules, or ``all-linear``.
        last_layers: Blocks that are trained, from the end.
    """

    name: str
    label: str
    method: str | None
    options: Options = field(default_factory=dict)
    target_set: str | None = None
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    last_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Build:
    """Asks a process to load the base and make it ready to train."""

    base: Path
    allow_pickle: bool
    head: HeadKind
    candidate: Candidate
    shapes: tuple[Shape, ...]
    settings: ProfileSettings


@dataclass(frozen=True, kw_only=True)
class Built:
    """What stands ready.

    Attributes:
        num_trained: Number of trainable parameters.
        num_matrices: Number of matrices the method changes.
        runtime_bytes: Memory before the model was loaded: Python and its libraries.
        loaded_bytes: Memory with the model loaded, before the method came.
    """

    num_trained: int
    num_matrices: int
    runtime_bytes: int
    loaded_bytes: int


@dataclass(frozen=True, kw_only=True)
class Warm:
    """Asks for the first steps of a shape, which are not counted; memory is taken here."""

    shape: Shape
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Warmed:
    """How long the last of them took, and the most memory.

    Attributes:
        step_seconds: Duration of the last step.
        peak_bytes: Of the process, at any moment of all.
        tensor_bytes: Of tensors, at any moment of one step more.
    """

    step_seconds: float
    peak_bytes: int
    tensor_bytes: int


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Asks for some steps that count, after some that do not."""

    shape: Shape
    num_lead: int
    num_steps: int


@dataclass(frozen=True)
class Failed:
    """A setting cannot be measured, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one setting, in a process of its own.

    Attributes:
        runtime_bytes: Before the model was loaded (0 where the device's own allocator counts).
        loaded_bytes: With the model loaded, before the method came.
        peak_bytes: The most at any moment of the first steps.
        tensor_bytes: The most that tensors took at any moment of a step: weights, what the method adds,
            gradients, the optimiser's state and activations.
    """

    runtime_bytes: int
    loaded_bytes: int
    peak_bytes: int
    tensor_bytes: int

    @property
    def resident_bytes(self) -> int:
        """What training took of the process's memory: the tensors, and the allocator's holes."""
        return max(0, self.peak_bytes - self.runtime_bytes)


@dataclass(frozen=True, kw_only=True)
class ShapeReport:
    """One setting at one shape.

    Attributes:
        batch, length: The shape.
        num_rounds: Number of rounds it took part in.
        seconds: Medians over rounds with their intervals: ``forward``, ``backward``, ``optimizer``, ``step``.
        ratios: Ratios to the reference in the same round; None for the reference.
        tokens_per_second: By the step's median.
        memory: Peak memory.
        memory_ratio: Ratio of tensor memory to the reference's; None for the reference.
        resident_ratio: Ratio of process memory to the reference's.
        verdict: By the step's ratio; None for the reference and its second copy.
        rounds: Seconds of (forward, backward, optimizer) in each round.
    """

    batch: int
    length: int
    num_rounds: int
    seconds: Mapping[str, Interval]
    ratios: Mapping[str, Interval] | None
    tokens_per_second: Interval
    memory: Memory
    memory_ratio: float | None
    resident_ratio: float | None
    verdict: StepVerdict | None
    rounds: tuple[Phases, ...]


@dataclass(frozen=True, kw_only=True)
class SettingReport:
    """One way to train, and what it cost.

    Attributes:
        candidate: The setting.
        failure: Why it has no figures, or no further ones.
        num_trained: Number of trainable parameters; None if it was not built.
        num_matrices: Number of matrices the method changes.
        cells: By shape.
    """

    candidate: Candidate
    failure: str | None
    num_trained: int | None
    num_matrices: int | None
    cells: tuple[ShapeReport, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeRecommendation:
    """What follows for one shape.

    Attributes:
        batch, length: The shape.
        outcome: ``faster``: something is; ``not-faster``: nothing is, and every interval says so;
            ``undecided``: nothing is measurably faster; ``noisy``: full fine-tuning differs from itself;
            ``too-few-rounds``: for intervals of the level; ``no-full``: it could not be measured.
        setting: The fastest that is faster than full fine-tuning; None without one.
        not_told_apart: Settings whose step time does not measurably differ from its own.
        null: Ratio of two measurements of full fine-tuning; None without one.
        resolution: Smallest difference that can be detected, as a share; None if unknown.
        sentence: The recommendation as a sentence.
        reason: The evidence for it.
    """

    batch: int
    length: int
    outcome: Outcome
    setting: str | None
    not_told_apart: tuple[str, ...]
    null: Interval | None
    resolution: float | None
    sentence: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """A profile.

    Attributes:
        base: Name of the base as given.
        revision: Revision on the hub.
        head: Kind of head that the loss is computed with.
        num_parameters: Number of parameters of the model.
        settings: The requested settings.
        reference: Name of the setting that ratios refer to.
        level: Of each interval of a ratio; with this, all of a shape hold together with 95%.
        num_rounds: Number of finished rounds.
        stopped: ``precise``, ``time`` or ``lost``.
        seconds: Total duration.
        results: By setting.
        recommendations: By shape.
        environment: Versions and hardware it was measured with.
    """

    base: str
    revision: str | None
    head: HeadKind
    num_parameters: int
    settings: ProfileSettings
    reference: str
    level: float
    num_rounds: int
    stopped: str
    seconds: float
    results: tuple[SettingReport, ...]
    recommendations: tuple[ShapeRecommendation, ...]
    environment: Mapping[str, Any]
