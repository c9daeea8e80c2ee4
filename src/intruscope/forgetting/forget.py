"""A whole measurement: from two models, or a base and several fine-tunes, to one report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.live_switch import adapter_edits
from intruscope.adapters.opening import open_pair
from intruscope.adapters.several import open_fine_tunes
from intruscope.forgetting.measurement import Measurement, Request
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.records import FleetForgettingReport, ForgettingReport
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS, NUM_RESAMPLES, DType, SkillSettings, Unit
from intruscope.forgetting.tasks import ClassificationTask
from intruscope.forgetting.texts import read_texts
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import ModelLike
    from intruscope.forgetting.tasks import Task


def forget(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    field: str | None = None,
    gamma: float | None = None,
    protocol: str | None = None,
    unit: Unit | None = None,
    context: int | None = None,
    stride: int | None = None,
    max_sequences: int | None = None,
    tasks: Sequence[Task] = (),
    max_task_tokens: int | None = None,
    skills: SkillSettings | Sequence[str] = (),
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
    """Measure how much a fine-tune forgot: its loss on text minus the base's, and its skills, with intervals.

    A task that cannot be scored (its head is missing, say) does not stop the measurement: it becomes a
    finding of the report.

    Args:
        base: The base model: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory.
        tuned: The tuned model: a full checkpoint, an adapter, or a model or PeftModel in memory. Models in
            memory are copied and left as they are.
        text: Files, patterns, or ``hf:org/name:split``; text like that of pretraining. It can be left out
            where there are skills.
        field: Column that holds the text, in tables.
        gamma: Measure adapter guidance with this strength in place of the tuned model: log p = log p_base +
            gamma (log p_tuned - log p_base), on the text and on the tasks.
        protocol: ``causal``; or for a masked model ``exact`` (default) or ``fast``. On a text so small that
            checking ``fast`` would cost more than it saves, ``exact`` is used instead.
        unit: What a sequence is: ``line`` (default for a masked model) or ``running`` (for a causal one).
        context: Longest input in tokens; by default the model's, at most 1024 (causal) or 512 (masked).
        stride: How far each window of a causal model moves on, in tokens; half a context by default.
        max_sequences: Maximum number of sequences, sampled evenly over the text.
        tasks: Tasks to score as well, from ``load_task``.
        max_task_tokens: Truncate the texts of a classification to this many tokens.
        skills: Tasks of lm-evaluation-harness (names, or paths of YAML files), or settings that say more.
            Causal models only.
        seed: Random seed of the fast protocol's masks and of the bootstrap.
        num_resamples: Number of bootstrap resamples.
        batch_tokens: Maximum number of token positions per batch.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``.
        tokenizer: A tokenizer, or the folder of one; by default the one beside the base.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called when the models are loaded, and after each batch, in tokens, examples or requests.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    request = request_of(
        text=text,
        field=field,
        skills=skills,
        gamma=gamma,
        protocol=protocol,
        unit=unit,
        context=context,
        stride=stride,
        max_sequences=max_sequences,
        tasks=tuple(tasks),
        max_task_tokens=max_task_tokens,
        seed=seed,
        num_resamples=num_resamples,
        batch_tokens=batch_tokens,
        device=device,
        dtype=dtype,
        tokenizer=tokenizer,
        allow_pickle=allow_pickle,
        on_progress=on_progress,
        on_notice=on_notice,
    )
    loading = Progress(stage="loading", done=0, total=2, unit="models")
    on_progress(loading)
    pair = load_pair(base, tuned, **request.loading)
    on_progress(replace(loading, done=2))
    return measure_pair(pair, request)


def measure_pair(pair: LivePair, request: Request) -> ForgettingReport:
    """Measure a loaded pair.

    Args:
        pair: The base and one fine-tune.
        request: What is measured and how.

    Raises:
        IntruscopeError: there is no language-model head, the text does not fit, or a figure is not finite.
    """
    measurement = Measurement(request)
    pair.language_model()  # without a head for words, nothing can be measured
    scorable, findings = measurement.check_tasks(pair)
    measurement.measure_base(pair)
    with pair.as_tuned():
        report = measurement.report(pair, pair.description, tasks=scorable, findings=findings)
    return measurement.finished([report])[0]


def forget_fleet(
    base: ModelLike, tuned: Sequence[ModelLike], *, same_base: bool = False, **options: Any
) -> FleetForgettingReport:
    """Measure how much each of several fine-tunes of one base forgot; the base is measured once.

    Adapters by name are switched on in the loaded base. Everything else (full checkpoints, models in memory,
    adapters with a head of their own) is loaded as a pair, one at a time.

    Args:
        base: The base model alone.
        tuned: Adapters or full checkpoints of it, by name or in memory.
        same_base: Trust that all adapters are of this base, although their configs name different ones.
        options: The keyword arguments of :func:`forget`.

    Returns:
        One report per fine-tune. The p of skills are adjusted for all of them together.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    request = request_of(**options)
    measurement = Measurement(request)
    fleet = open_fine_tunes(base, tuned, allow_pickle=request.allow_pickle, same_base=same_base, least=1)
    first = fleet.members[0]
    start = first.base if first.base_module is None else first.base_module
    loading = Progress(stage="loading", done=0, total=1, unit="models")
    request.on_progress(loading)
    # The base as both states: an adapter then is an edit of it, with nothing of any other fine-tune.
    host = load_pair(open_pair(start, start), **request.loading)
    request.on_progress(replace(loading, done=1))
    measurement.measure_base(host)
    # Classifications need the head of each fine-tune, which the base does not have.
    can_switch = not any(isinstance(task, ClassificationTask) for task in request.tasks)
    reports = []
    for label, member in zip(fleet.labels, fleet.members, strict=True):
        edits = adapter_edits(member, host) if can_switch else None
        # A base in memory is a module to the first alone: the others were opened with its weights.
        whole = replace(member, base_module=first.base_module)
        pair = host if edits is not None else load_pair(whole, **request.loading)
        scorable, findings = measurement.check_tasks(pair)
        with pair.as_tuned() if edits is None else pair.with_edits(edits):
            names = (fleet.base.name, member.tuned.name)
            reports.append(measurement.report(pair, names, tasks=scorable, findings=findings, stage=label))
    return FleetForgettingReport(
        base=fleet.base.name, labels=fleet.labels, reports=measurement.finished(reports)
    )


def request_of(
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    field: str | None = None,
    skills: SkillSettings | Sequence[str] = (),
    **others: Any,
) -> Request:
    """The keyword arguments of :func:`forget`, with the text read.

    Args:
        text: As for :func:`forget`, like the others.
        field: Likewise.
        skills: Likewise.
        others: Likewise.

    Raises:
        IntruscopeError: the text cannot be read, or there is nothing to measure.
    """
    corpus = None
    if text is not None:
        corpus = read_texts([text] if isinstance(text, (str, Path)) else list(text), field=field)
    if not isinstance(skills, SkillSettings):
        skills = SkillSettings(skills=(skills,) if isinstance(skills, str) else tuple(skills))
    return Request(corpus=corpus, skills=skills, **others)
