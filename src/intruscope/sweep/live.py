"""A sweep's bench on a live pair: loaded once, weights switched in memory, nothing written to disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.forgetting.guided import Guided, checked_gamma
from intruscope.forgetting.losses import PROTOCOLS, measure
from intruscope.forgetting.scores import score
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask
from intruscope.sweep.records import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.live import LivePair
    from intruscope.forgetting.losses import SequenceLosses
    from intruscope.forgetting.settings import Protocol
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.windows import Sequences
    from intruscope.repair.edits import MatrixEdit
    from intruscope.sweep.records import Metric


class LiveBench:
    """Measures the states of a live pair on one text and one task.

    Args:
        pair: A loaded pair.
        sequences: Sequences of the text.
        protocol: How losses on the text are computed.
        task: The task to score.
        seed: Random seed of the fast protocol's masks.
        batch_tokens: Maximum number of token positions per batch.
        max_tokens: Truncate the examples of a classification to this many tokens.
        max_sequences: Maximum number of sequences of held-out text as a task, sampled evenly.
    """

    def __init__(
        self,
        pair: LivePair,
        sequences: Sequences,
        *,
        protocol: Protocol,
        task: Task,
        seed: int = 0,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        max_tokens: int | None = None,
        max_sequences: int | None = None,
    ) -> None:
        self._pair = pair
        self._sequences = sequences
        self._protocol: Protocol = protocol
        self._task = task
        self._seed = seed
        self._batch_tokens = batch_tokens
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences

    @property
    def metric(self) -> Metric:
        """The metric of the task."""
        return "accuracy" if isinstance(self._task, (ClassificationTask, ChoiceTask)) else "loss"

    @property
    def protocol(self) -> str:
        """How losses on the text are computed, with a version."""
        return PROTOCOLS[self._protocol]

    def base_text(self) -> Measurement:
        """The base on the text; it has no head for the task.

        Raises:
            IntruscopeError: there is no language-model head, or a loss is not finite.
        """
        with self._pair.as_base():
            losses = self._losses()
        return Measurement(**_text(losses), task_scores=(), task_weights=(), task_nats=(), num_cut=0)

    def edited(self, edits: Sequence[MatrixEdit]) -> Measurement:
        """The tuned model with these edits.

        Raises:
            IntruscopeError: the live model lacks an edited matrix, or a loss is not finite.
        """
        with self._pair.with_edits(edits):
            return self._measurement()

    def interpolated(self, fraction: float) -> Measurement:
        """The model with everything that the fine-tune changed at base + fraction (tuned - base).

        Raises:
            IntruscopeError: a loss is not finite.
        """
        with self._pair.interpolated(fraction):
            return self._measurement()

    def guided(self, gamma: float) -> Measurement:
        """Adapter guidance: log p = log p_base + gamma (log p_tuned - log p_base).

        Raises:
            IntruscopeError: a gamma out of range, or a loss that is not finite.
        """
        with self._pair.as_tuned():
            return self._measurement(Guided(pair=self._pair, gamma=checked_gamma(gamma)))

    def _losses(self, guided: Guided | None = None) -> SequenceLosses:
        return measure(
            self._pair.language_model(),
            self._sequences,
            protocol=self._protocol,
            seed=self._seed,
            batch_tokens=self._batch_tokens,
            guided=guided,
        )

    def _measurement(self, guided: Guided | None = None) -> Measurement:
        losses = self._losses(guided)
        scored = score(
            self._pair,
            self._task,
            batch_tokens=self._batch_tokens,
            max_tokens=self._max_tokens,
            max_sequences=self._max_sequences,
            guided=guided,
        )
        scores = scored.nats_N if scored.right_N is None else scored.right_N
        return Measurement(
            **_text(losses),
            task_scores=tuple(map(float, scores)),
            task_weights=tuple(map(float, scored.units_N)),
            task_nats=tuple(map(float, scored.nats_N)),
            num_cut=scored.num_truncated,
        )


def num_examples(task: Task) -> int | None:
    """Number of examples of a task; None for held-out text, whose sequences depend on the model."""
    if isinstance(task, ClassificationTask):
        return len(task.labels)
    return len(task.choices) if isinstance(task, ChoiceTask) else None


def limited(task: Task, max_examples: int | None) -> Task:
    """A task with at most ``max_examples`` examples, sampled evenly.

    Held-out text has no examples before it is cut into sequences: scoring it takes ``max_sequences`` instead.

    Args:
        task: A loaded task.
        max_examples: None for all of them.
    """
    if max_examples is None:
        return task
    if isinstance(task, ClassificationTask):
        return picked(task, _spread(len(task.labels), max_examples))
    if isinstance(task, ChoiceTask):
        return picked(task, _spread(len(task.choices), max_examples))
    return task


def picked(task: ClassificationTask | ChoiceTask, places: Sequence[int]) -> ClassificationTask | ChoiceTask:
    """A task with the examples at some places, in the given order."""
    if isinstance(task, ChoiceTask):
        return replace(task, choices=tuple(task.choices[i] for i in places))
    return replace(
        task, texts=tuple(task.texts[i] for i in places), labels=tuple(task.labels[i] for i in places)
    )


def _spread(num: int, at_most: int) -> list[int]:
    count = min(num, at_most)
    return [i * num // count for i in range(count)]


def _text(losses: SequenceLosses) -> dict[str, tuple[float, ...]]:
    return {
        "text_nats": tuple(map(float, losses.nats)),
        "text_tokens": tuple(map(float, losses.tokens)),
    }
