"""What a chain reports. Frozen records; the command line writes them as ``intruscope.chain/1``.

Stages count from 0, which is the base before any training; stage k is the model after its k-th task. A figure
that does not exist (a best earlier stage of the first one) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from intruscope.engine.settings import RunOptions
from intruscope.options import documented, option, shared
from intruscope.train.settings import TuneSettings

if TYPE_CHECKING:
    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask
    from intruscope.spectra.records import SimilarityMap

SCHEMA = "intruscope.chain/1"
Between = Literal["merge", "keep"]


@dataclass(frozen=True, kw_only=True)
class ChainTask:
    """One task of a chain.

    Attributes:
        name: Short, unique in the chain; names the stage's folder.
        train: Examples to train on and to fit heads on.
        held_out: Examples to score on.
    """

    name: str
    train: ClassificationTask | ChoiceTask
    held_out: ClassificationTask | ChoiceTask


@documented
@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """What a chain does.

    Attributes:
        training: Of every stage; its seed is the chain's, from which each stage draws its own, and its
            ``examples`` are those of each task.
        map_size: Number of leading vectors on each side of a similarity map; 0 for none.
    """

    training: TuneSettings
    between: Between = option(
        "merge",
        help="After each task, merge the update into the model and start a new adapter (merge; as in the "
        "paper), or continue with the same adapter (keep).",
    )
    num_head_examples: int = option(
        1000, flag="head-examples", help="Training examples of each task used to fit its head.", minimum=2
    )
    num_eval_examples: int | None = option(
        None,
        flag="eval-examples",
        help="Maximum number of held-out examples per task to evaluate on (default: all).",
        minimum=2,
    )
    max_sequences: int | None = option(
        None,
        help="Maximum number of text sequences, sampled evenly (default: all).",
        minimum=2,
        needs=("--text",),
    )
    map_size: int = 24
    keep_models: bool = option(
        False, help="Keep the merged model of every stage, not only the last one.", panel="Output"
    )
    workers: int | None = shared(RunOptions, "workers")


@dataclass(frozen=True, kw_only=True)
class HeadFigures:
    """How a head was fitted (:mod:`intruscope.sequence.heads`).

    Attributes:
        num_examples: Number of examples it was fitted on.
        num_features: Number of input features.
        loss: Loss on those examples in nats.
        gradient_norm: Norm of the gradient at the end.
        num_steps: Number of solver steps.
        converged: The gradient vanished.
    """

    num_examples: int
    num_features: int
    loss: float
    gradient_norm: float
    num_steps: int
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell against an earlier stage on the same examples.

    Attributes:
        stage: The earlier stage.
        difference: Accuracy of the cell minus that of the earlier stage.
        mcnemar_p: Two-sided p-value of the exact McNemar test.
    """

    stage: int
    difference: Interval
    mcnemar_p: float


@dataclass(frozen=True, kw_only=True)
class StageScore:
    """One task after one stage.

    Attributes:
        stage: 0 is the base.
        task: Name of the task.
        accuracy: Accuracy of a head fitted on this stage's frozen body, with Wilson's interval.
        head: How it was fitted.
        against_baseline: Comparison with the base's own body; None at stage 0.
        against_own: Comparison with the stage that trained this task; None up to that stage.
        against_best: The best trained stage before this one, whichever task it trained. It was chosen for
            being the best, so its difference leans downward; None for stages 0 and 1.
    """

    stage: int
    task: str
    accuracy: Interval
    head: HeadFigures
    against_baseline: Comparison | None
    against_own: Comparison | None
    against_best: Comparison | None


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The usual figures of continual learning after a stage, over the tasks that were trained by then.

    Attributes:
        average_accuracy: Mean over these tasks.
        backward_transfer: Mean over the earlier of them of accuracy now less accuracy right after their own
            stage (Lopez-Paz & Ranzato 2017); None with one task.
        forgetting: Mean over the earlier of them of their best accuracy at an earlier trained stage less
            accuracy now (Chaudhry et al. 2018, section 3). The best of several noisy figures is too high,
            so this is above zero where nothing was forgotten; hence no interval. None with one task.
        forward_transfer: Mean over all but the first of accuracy just before their own stage less the
            base's (Lopez-Paz & Ranzato 2017, with the base for the model at random); None with one task.
    """

    average_accuracy: Interval
    backward_transfer: Interval | None
    forgetting: float | None
    forward_transfer: Interval | None


@dataclass(frozen=True, kw_only=True)
class MatrixFigures:
    """One matrix after one stage, against the original base.

    Attributes:
        name: Name of the matrix in the base.
        num_intruders: Number of intruders among its leading vectors.
        update_norm: ``‖W - W_base‖_F``.
        effective_rank: Effective rank of the update; None if the update is zero or the rank unknown.
    """

    name: str
    num_intruders: int
    update_norm: float
    effective_rank: float | None


@dataclass(frozen=True, kw_only=True)
class WeightFigures:
    """The weights after one stage, against the original base: what ``intruscope scan`` says of the two.

    Attributes:
        num_intruders: Number of intruders in the linear layers of the blocks.
        num_undecided: Vectors whose verdict is open.
        num_candidates: Leading vectors that could have been intruders.
        num_hosts: Matrices with an intruder.
        update_norm: Frobenius norm of the whole update so far.
        relative_update_norm: That norm divided by the norm of the same matrices of the base.
        effective_rank: Mean over the matrices that changed; None where none did.
        complete: Whether everything that should be compared was compared.
        matrices: Figures of each matrix.
    """

    num_intruders: int
    num_undecided: int
    num_candidates: int
    num_hosts: int
    update_norm: float
    relative_update_norm: float
    effective_rank: float | None
    complete: bool
    matrices: tuple[MatrixFigures, ...]


@dataclass(frozen=True, kw_only=True)
class ForgettingFigures:
    """Loss on the text after one stage.

    Attributes:
        change: Against the original base, nats per token, paired.
        loss: Nats per token.
        protocol: How losses were measured.
    """

    change: Interval
    loss: float
    protocol: str


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One trained stage.

    Attributes:
        stage: Number of the stage, from 1.
        task: Name of the task it trained.
        seed: Seed of its start and of the order of its examples, derived from (seed of the chain, stage).
        num_steps: Number of optimiser steps.
        num_trained: Number of trainable parameters.
        loss: Mean training loss at the end.
        train_seconds: Duration of training; after a resume, of the last part.
        weights: Change of the weights from the original base.
        forgetting: None without a text.
        transfer: Transfer between tasks up to this stage.
        similarity: Of the matrix that the report names; None where it has none.
    """

    stage: int
    task: str
    seed: int
    num_steps: int
    num_trained: int
    loss: float | None
    train_seconds: float
    weights: WeightFigures
    forgetting: ForgettingFigures | None
    transfer: Transfer
    similarity: SimilarityMap | None


@dataclass(frozen=True, kw_only=True)
class ChainReport:
    """A whole chain.

    Attributes:
        base: The base model.
        method: Name of the method.
        between: See :class:`ChainSettings`.
        plan: Everything that can change a figure, with every default filled in.
        tasks: In the order of training.
        cells: Accuracy of every task after every stage, by stage and then by task.
        stages: The trained ones.
        map_matrix: Of the similarity maps: that with the most intruders over all stages.
        model: Folder of the last merged body.
        environment: Versions of the packages used.
    """

    base: str
    method: str
    between: Between
    plan: dict[str, Any]
    tasks: tuple[str, ...]
    cells: tuple[StageScore, ...]
    stages: tuple[StageReport, ...]
    map_matrix: str | None
    model: str
    environment: dict[str, Any] = field(default_factory=dict)

    def cell(self, stage: int, task: str) -> StageScore:
        """One cell of the accuracy matrix."""
        return self.cells[stage * len(self.tasks) + self.tasks.index(task)]


def chain_json(report: ChainReport) -> dict[str, Any]:
    """The object of the schema ``intruscope.chain/1``."""
    return {"schema": SCHEMA, **asdict(report)}
