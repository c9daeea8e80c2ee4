"""A whole measurement: two models and a text to one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.engine.environment import environment
from intruscope.errors import UsageError
from intruscope.forgetting import intervals
from intruscope.forgetting.losses import (
    DEFAULT_BATCH_TOKENS,
    PROTOCOLS,
    SequenceLosses,
    choose_protocol,
    measure,
)
from intruscope.forgetting.models import DType, load_pair
from intruscope.forgetting.records import ForgettingReport, ForgettingSettings, LossFigures, TaskFigures
from intruscope.forgetting.scores import TaskScore, check_task, needs_head, score
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import Sequences, Unit, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from intruscope.adapters.live import LivePair
    from intruscope.forgetting.tasks import Task

NUM_CHECKED = 20
"""Sequences on which the fast protocol is held against the exact one."""


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
    num_resamples: int = intervals.NUM_RESAMPLES,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    device: str = "auto",
    dtype: DType = "float32",
    tokenizer: Any = None,
    allow_pickle: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> ForgettingReport:
    """Measure how much a fine-tune forgot: its loss on text minus the base's, with an interval.

    Args:
        base: Model before: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory.
        tuned: Model after: a full checkpoint, an adapter, or a model or PeftModel in memory. Models in memory
            are copied and left as they are.
        text: Files, patterns, or ``hf:org/name:split``; text like that of pre-training.
        field: Column of tables that holds the text.
        protocol: ``causal``; or for a masked model ``exact`` (default) or ``fast``.
        unit: What a sequence is: ``line`` (default for a masked model) or ``running`` (for a causal one).
        context: Longest input in tokens; by default the model's, at most 1024 (causal) or 512 (masked).
        stride: How far each window of a causal model moves on; half a context by default.
        max_sequences: At most so many sequences, spread evenly over the text.
        tasks: Tasks to score besides, from ``load_task``.
        max_task_tokens: Cut the texts of a classification to so many tokens.
        seed: Of the fast protocol's masks and of the bootstrap.
        num_resamples: Of the bootstrap.
        batch_tokens: Positions per batch.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``.
        tokenizer: One, or the folder of one; that beside the base by default.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called with what is done, how much of it, and of how much.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    corpus = read_texts([text] if isinstance(text, (str, Path)) else list(text), field=field)
    if num_resamples < 100:
        fact = f"got {num_resamples} resamples, expected at least 100"
        raise UsageError(fact, remedy="raise --resamples, or leave it out")
    on_progress("loading", 0, 1)
    pair = load_pair(base, tuned, device=device, dtype=dtype, tokenizer=tokenizer, allow_pickle=allow_pickle)
    language = pair.language_model()
    chosen = choose_protocol(language.kind, protocol)
    cutting: dict[str, Any] = {"unit": unit, "context": context, "stride": stride}
    sequences = cut(corpus, language, max_sequences=max_sequences, **cutting)
    for task in tasks:
        check_task(pair, task)  # labels that do not fit are told before the work
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
    before, after = measure_both(
        pair, sequences, protocol=chosen, seed=seed, batch_tokens=batch_tokens, on_progress=on_progress
    )
    fast_error = None
    if chosen == "fast":
        few = cut(corpus, language, max_sequences=min(NUM_CHECKED, sequences.num_sequences), **cutting)
        fast_error = _fast_error(pair, few, settings, batch_tokens, on_progress)
    bootstrap: dict[str, int] = {"num_resamples": num_resamples, "seed": seed}
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
        num_tokens=int(before.tokens.sum()),
        num_bytes=int(before.bytes.sum()),
        num_sequences=sequences.num_sequences,
        num_left_out=sequences.num_left_out,
        text_sha256=corpus.sha256,
        texts=corpus.sources,
        tasks=tuple(
            _task_figures(pair, task, bootstrap, unit, batch_tokens, max_task_tokens, on_progress)
            for task in tasks
        ),
        environment=environment(("torch", "transformers", "tokenizers", "peft")),
    )


def measure_both(
    pair: LivePair,
    sequences: Sequences,
    *,
    protocol: Any,
    seed: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> tuple[SequenceLosses, SequenceLosses]:
    """Losses of base and tuned model on the same sequences."""
    language = pair.language_model()
    options: dict[str, Any] = {"protocol": protocol, "seed": seed, "batch_tokens": batch_tokens}
    with pair.as_base():
        options |= {"name": pair.description[0], "on_progress": lambda d, n: on_progress("base", d, n)}
        before = measure(language, sequences, **options)
    with pair.as_tuned():
        options |= {"name": pair.description[1], "on_progress": lambda d, n: on_progress("tuned", d, n)}
        after = measure(language, sequences, **options)
    return before, after


def _fast_error(
    pair: LivePair,
    sequences: Sequences,
    settings: ForgettingSettings,
    batch_tokens: int,
    on_progress: Callable[[str, int, int], None],
) -> intervals.Interval:
    """What the fast protocol says of forgetting, minus what the exact one says, on the same sequences."""
    change = {}
    for protocol in ("fast", "exact"):
        before, after = measure_both(
            pair,
            sequences,
            protocol=protocol,
            seed=settings.seed,
            batch_tokens=batch_tokens,
            on_progress=lambda what, done, all_: on_progress(
                f"check of the fast protocol, {what}", done, all_
            ),
        )
        change[protocol] = after.nats - before.nats
    return intervals.paired_difference(
        change["exact"],
        change["fast"],
        before.tokens,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
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
    on_progress: Callable[[str, int, int], None],
) -> TaskFigures:
    def scored(state: str) -> TaskScore:
        return score(
            pair,
            task,
            unit=unit,
            batch_tokens=batch_tokens,
            max_tokens=max_tokens,
            on_progress=lambda done, all_: on_progress(f"{task.name}, {state}", done, all_),
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
