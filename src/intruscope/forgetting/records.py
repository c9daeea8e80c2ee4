"""The figures of a forgetting measurement, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.texts import TextSource
    from intruscope.weights.matrices import Finding

SCHEMA = "intruscope.forget/1"


@dataclass(frozen=True, kw_only=True)
class ForgettingSettings:
    """Everything that a figure depends on, apart from the models and the text.

    Attributes:
        protocol: Name and version, such as ``causal-cross-entropy/1``.
        unit: What a sequence is: ``line`` or ``running``.
        context: Longest input in tokens.
        stride: Tokens scored in each further window; None for a masked model.
        max_sequences: Maximum number of sequences, sampled evenly; None for all.
        seed: Random seed of the fast protocol's masks and of the bootstrap.
        num_resamples: Number of bootstrap resamples.
        device: Where it was computed.
        dtype: Precision of weights and computation.
    """

    protocol: str
    unit: str
    context: int
    stride: int | None
    max_sequences: int | None
    seed: int
    num_resamples: int
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class LossFigures:
    """The loss of one model.

    Attributes:
        nats_per_token: With its interval.
        nats_per_byte: Does not depend on the tokenizer.
        perplexity: exp of nats per token; for a masked model the pseudo-perplexity.
    """

    nats_per_token: Interval
    nats_per_byte: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """Scores on one task.

    Attributes:
        name: As given.
        metric: ``accuracy`` or ``nats/token``.
        num_examples: Number of examples, or of sequences of held-out text.
        tuned: Score of the tuned model.
        base: Score of the base; None for a classifier, whose head the base lacks.
        difference: Tuned minus base, paired.
        mcnemar_p: Exact p of McNemar's test for a change of accuracy; None for other metrics.
        num_truncated: Number of examples truncated to the model's longest input.
        sha256: Hash of examples and answers.
    """

    name: str
    metric: str
    num_examples: int
    tuned: Interval
    base: Interval | None
    difference: Interval | None
    mcnemar_p: float | None
    num_truncated: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ForgettingReport:
    """How much a fine-tune forgot.

    Attributes:
        base, tuned: Names of the models.
        kind: ``causal`` or ``masked``.
        settings: How it was measured.
        base_loss, tuned_loss: Losses of the two models.
        forgetting: Tuned minus base in nats per token, paired by sequence.
        forgetting_per_byte: The same per byte.
        fast_error: For the fast protocol, its forgetting minus that of the exact one, on ``num_checked``
            sequences; None for the others.
        num_tokens, num_bytes, num_sequences: What was scored.
        num_left_out: Sequences without a token to score, or beyond ``max_sequences``.
        text_sha256: Hash of the text.
        texts: Its sources.
        tasks: Scores on the tasks that could be scored.
        environment: Versions that a figure depends on.
        num_checked: Number of sequences on which the fast protocol was checked.
        findings: What the reader must know, such as tasks that could not be scored.
    """

    base: str
    tuned: str
    kind: str
    settings: ForgettingSettings
    base_loss: LossFigures
    tuned_loss: LossFigures
    forgetting: Interval
    forgetting_per_byte: Interval
    fast_error: Interval | None
    num_tokens: int
    num_bytes: int
    num_sequences: int
    num_left_out: int
    text_sha256: str
    texts: tuple[TextSource, ...]
    tasks: tuple[TaskFigures, ...]
    environment: dict[str, Any]
    num_checked: int = 0
    findings: tuple[Finding, ...] = ()
