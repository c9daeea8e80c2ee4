"""A whole measurement: from two models and a text to one report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.engine.environment import environment
from intruscope.errors import IntruscopeError, MalformedInput, UsageError, printable
from intruscope.forgetting import intervals
from intruscope.forgetting.losses import (
    PROTOCOLS,
    SequenceLosses,
    choose_protocol,
    measure,
    positions_per_sequence,
)
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.records import ForgettingReport, ForgettingSettings, LossFigures, TaskFigures
from intruscope.forgetting.scores import TaskScore, check_head, check_labels, needs_head, score
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS, NUM_RESAMPLES, DType, Unit
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import Sequences, cut, spread
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from intruscope.adapters.live import LivePair
    from intruscope.forgetting.tasks import Task

NUM_CHECKED = 20
"""Most sequences on which the fast protocol is checked against the exact one."""
MAX_CHECK_SHARE = 0.25
"""Largest cost of that check, as a share of what the fast protocol saves."""


def forget(
    base: str | Path | nn.Module,
    tuned: str | Path | nn.Module | None = None,
    *,
    text: str | Path | Sequence[str | Path],
    field: str | None = None,
    protocol: str | None = None,
    unit: Unit | None = None,
    context: int | None = None,
    stride: int | None = None,
    max_sequences: int | None = None,
    tasks: Sequence[Task] = (),
    max_task_tokens: int | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    device: str = "auto",
    dtype: DType = "float32",
    tokenizer: Any = None,
    allow_pickle: bool = False,
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> ForgettingReport:
    """Measure how much a fine-tune forgot: its loss on text minus the base's, with an interval.

    A task that cannot be scored (its head is missing, say) does not stop the measurement: it becomes a
    finding of the report.

    Args:
        base: The base model: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory.
        tuned: The tuned model: a full checkpoint, an adapter, or a model or PeftModel in memory. Models in
            memory are copied and left as they are.
        text: Files, patterns, or ``hf:org/name:split``; text like that of pretraining.
        field: Column that holds the text, in tables.
        protocol: ``causal``; or for a masked model ``exact`` (default) or ``fast``. On a text so small that
            checking ``fast`` would cost more than it saves, ``exact`` is used instead.
        unit: What a sequence is: ``line`` (default for a masked model) or ``running`` (for a causal one).
        context: Longest input in tokens; by default the model's, at most 1024 (causal) or 512 (masked).
        stride: How far each window of a causal model moves on, in tokens; half a context by default.
        max_sequences: Maximum number of sequences, sampled evenly over the text.
        tasks: Tasks to score as well, from ``load_task``.
        max_task_tokens: Truncate the texts of a classification to this many tokens.
        seed: Random seed of the fast protocol's masks and of the bootstrap.
        num_resamples: Number of bootstrap resamples.
        batch_tokens: Maximum number of token positions per batch.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``.
        tokenizer: A tokenizer, or the folder of one; by default the one beside the base.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called when the models are loaded, and after each batch, in tokens or examples.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    corpus = read_texts([text] if isinstance(text, (str, Path)) else list(text), field=field)
    if num_resamples < 100:
        fact = f"{num_resamples} bootstrap resamples are too few for an interval; at least 100 are needed"
        raise UsageError(fact, remedy="raise --resamples, or leave it out")
    loading = Progress(stage="loading", done=0, total=2, unit="models")
    on_progress(loading)
    pair = load_pair(base, tuned, device=device, dtype=dtype, tokenizer=tokenizer, allow_pickle=allow_pickle)
    on_progress(replace(loading, done=2))
    language = pair.language_model()
    chosen = choose_protocol(language.kind, protocol)
    sequences = cut(corpus, language, unit=unit, context=context, stride=stride, max_sequences=max_sequences)
    findings: list[Finding] = []
    scorable: list[Task] = []
    for task in tasks:  # before the work: a task of the wrong kind and unknown labels are errors
        try:
            check_head(pair, task)
        except MalformedInput as error:  # a head that should be there is missing
            findings.append(_not_scored(task, error))
            on_notice(findings[-1].message)
            continue
        check_labels(pair, task)
        scorable.append(task)
    checked: tuple[int, ...] = ()
    if chosen == "fast":
        checked = sequences_to_check(sequences)
        if not checked:
            chosen = "exact"
            on_notice(
                f"the text has only {sequences.num_sequences} sequences: checking the fast protocol would "
                "cost too much of what it saves, so the exact protocol is used"
            )
    settings = ForgettingSettings(
        protocol=PROTOCOLS[chosen],
        unit=sequences.unit,
        context=sequences.context,
        stride=sequences.stride,
        max_sequences=max_sequences,
        seed=seed,
        num_resamples=num_resamples,
        device=str(language.model.device),
        dtype=dtype,
    )
    bootstrap: dict[str, int] = {"num_resamples": num_resamples, "seed": seed}
    before, after = measure_both(
        pair, sequences, protocol=chosen, seed=seed, batch_tokens=batch_tokens, on_progress=on_progress
    )
    fast_error = None
    if checked:
        exact = measure_both(
            pair,
            sequences.only(checked),
            protocol="exact",
            batch_tokens=batch_tokens,
            on_progress=lambda event: on_progress(
                replace(event, stage=f"checking the fast protocol, {event.stage}")
            ),
        )
        few = list(checked)
        fast_error = intervals.paired_difference(
            exact[1].nats - exact[0].nats, (after.nats - before.nats)[few], before.tokens[few], **bootstrap
        )
    figures: list[TaskFigures] = []
    for task in scorable:
        try:
            figures.append(
                _task_figures(pair, task, bootstrap, unit, batch_tokens, max_task_tokens, on_progress)
            )
        except IntruscopeError as error:
            findings.append(_not_scored(task, error))
    return ForgettingReport(
        base=pair.description[0],
        tuned=pair.description[1],
        kind=language.kind,
        settings=settings,
        base_loss=_figures(before, bootstrap),
        tuned_loss=_figures(after, bootstrap),
        forgetting=intervals.paired_difference(before.nats, after.nats, before.tokens, **bootstrap),
        forgetting_per_byte=intervals.paired_difference(before.nats, after.nats, before.bytes, **bootstrap),
        fast_error=fast_error,
        num_checked=len(checked),
        num_tokens=int(before.tokens.sum()),
        num_bytes=int(before.bytes.sum()),
        num_sequences=sequences.num_sequences,
        num_left_out=sequences.num_left_out,
        text_sha256=corpus.sha256,
        texts=corpus.sources,
        tasks=tuple(figures),
        findings=tuple(findings),
        environment=environment(("torch", "transformers", "tokenizers", "peft")),
    )


def sequences_to_check(sequences: Sequences) -> tuple[int, ...]:
    """Which sequences the fast protocol is checked on: evenly spread, as many as a modest cost allows.

    Costs are token positions that a model processes. The fast losses of these sequences are known already, so
    the check costs their exact losses alone.

    Returns:
        Indices; empty where even two sequences would cost more than ``MAX_CHECK_SHARE`` of what is saved.
    """
    exact, fast = (positions_per_sequence(sequences, protocol) for protocol in ("exact", "fast"))
    limit = MAX_CHECK_SHARE * (exact.sum() - fast.sum())
    for num in range(min(NUM_CHECKED, sequences.num_sequences), 1, -1):
        chosen = spread(sequences.num_sequences, num)
        if exact[chosen].sum() <= limit:
            return tuple(map(int, chosen))
    return ()


def measure_both(
    pair: LivePair,
    sequences: Sequences,
    *,
    protocol: Any,
    seed: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: OnProgress = ignore_progress,
) -> tuple[SequenceLosses, SequenceLosses]:
    """Losses of base and tuned model on the same sequences."""
    language = pair.language_model()
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "batch_tokens": batch_tokens}

    def under(stage: str) -> OnProgress:
        return lambda event: on_progress(replace(event, stage=stage))

    with pair.as_base():
        before = measure(language, sequences, name=pair.description[0], on_progress=under("base"), **options)
    with pair.as_tuned():
        after = measure(language, sequences, name=pair.description[1], on_progress=under("tuned"), **options)
    return before, after


def _not_scored(task: Task, error: IntruscopeError) -> Finding:
    return Finding(
        code="task-not-scored",
        severity="error",
        message=f"the task {printable(task.name)} was not scored: {error.fact}; {error.remedy}",
    )


def _figures(losses: SequenceLosses, bootstrap: dict[str, int]) -> LossFigures:
    return LossFigures(
        nats_per_token=intervals.loss_per(losses.nats, losses.tokens, **bootstrap),
        nats_per_byte=losses.nats_per_byte,
        perplexity=losses.perplexity,
    )


def _task_figures(
    pair: LivePair,
    task: Task,
    bootstrap: dict[str, int],
    unit: Unit | None,
    batch_tokens: int,
    max_tokens: int | None,
    on_progress: OnProgress,
) -> TaskFigures:
    def scored(state: str) -> TaskScore:
        return score(
            pair,
            task,
            unit=unit,
            batch_tokens=batch_tokens,
            max_tokens=max_tokens,
            on_progress=lambda event: on_progress(replace(event, stage=f"{task.name}, {state}")),
        )

    with pair.as_tuned():
        after = scored("tuned")
    before: TaskScore | None = None
    if not needs_head(pair, task):
        with pair.as_base():
            before = scored("base")
    difference, p = None, None
    if before is not None:
        if before.right_N is not None and after.right_N is not None:
            difference = intervals.accuracy_difference(before.right_N, after.right_N)
            p = intervals.mcnemar(before.right_N, after.right_N)
        else:
            difference = intervals.paired_difference(before.nats_N, after.nats_N, after.units_N, **bootstrap)
    return TaskFigures(
        name=task.name,
        metric=after.metric,
        num_examples=len(after.nats_N),
        tuned=_score_interval(after, bootstrap),
        base=None if before is None else _score_interval(before, bootstrap),
        difference=difference,
        mcnemar_p=p,
        num_truncated=after.num_truncated,
        sha256=task.sha256,
    )


def _score_interval(found: TaskScore, bootstrap: dict[str, int]) -> intervals.Interval:
    if found.right_N is not None:
        return intervals.wilson(int(found.right_N.sum()), len(found.right_N))
    return intervals.loss_per(found.nats_N, found.units_N, **bootstrap)
