"""One base measured once, and any number of its fine-tunes beside it, each in pairs with the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from intruscope.engine.environment import environment
from intruscope.errors import IntruscopeError, MalformedInput, UsageError, printable
from intruscope.forgetting import intervals
from intruscope.forgetting.guided import Guided, checked_gamma
from intruscope.forgetting.harness import Harness, check_kind
from intruscope.forgetting.losses import (
    PROTOCOLS,
    SequenceLosses,
    choose_protocol,
    measure,
    positions_per_sequence,
)
from intruscope.forgetting.records import (
    ForgettingReport,
    ForgettingSettings,
    LossFigures,
    SkillsPart,
    TaskFigures,
)
from intruscope.forgetting.scores import TaskScore, check_head, check_labels, needs_head, score
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS, NUM_RESAMPLES, DType, SkillSettings, Unit
from intruscope.forgetting.skills import adjusted, skill_figures
from intruscope.forgetting.windows import Sequences, cut, spread
from intruscope.progress import OnProgress, ignore_progress
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.adapters.live import LanguageModel, LivePair
    from intruscope.forgetting.harness import ItemScores
    from intruscope.forgetting.settings import Protocol
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus

NUM_CHECKED = 20
"""Most sequences on which the fast protocol is checked against the exact one."""
MAX_CHECK_SHARE = 0.25
"""Largest cost of that check, as a share of what the fast protocol saves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What is measured and how; the arguments of :func:`intruscope.forgetting.forget.forget`, read.

    Raises:
        UsageError: neither a text nor a skill, too few resamples, a gamma out of range, or one with skills.
    """

    corpus: Corpus | None
    skills: SkillSettings
    gamma: float | None = None
    protocol: str | None = None
    unit: Unit | None = None
    context: int | None = None
    stride: int | None = None
    max_sequences: int | None = None
    tasks: tuple[Task, ...] = ()
    max_task_tokens: int | None = None
    seed: int = 0
    num_resamples: int = NUM_RESAMPLES
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    device: str = "auto"
    dtype: DType = "float32"
    tokenizer: Any = None
    allow_pickle: bool = False
    on_progress: OnProgress = ignore_progress
    on_notice: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        if self.corpus is None and not self.skills.skills:
            raise UsageError(
                "there is nothing to measure forgetting on",
                remedy="give --text FILE, --skills TASKS, or both (text= and skills= in Python)",
            )
        if self.num_resamples < 100:
            raise UsageError(
                f"{self.num_resamples} bootstrap resamples are too few for an interval; at least 100 are "
                "needed",
                remedy="raise --resamples, or leave it out",
            )
        if self.gamma is not None:
            checked_gamma(self.gamma)
            if self.skills.skills:
                raise UsageError(
                    "guidance is measured on text and tasks, not on skills",
                    remedy="leave --skills or --gamma out",
                )

    @property
    def loading(self) -> dict[str, Any]:
        """How models are loaded."""
        names = ("device", "dtype", "tokenizer", "allow_pickle")
        return {name: getattr(self, name) for name in names}

    def guided(self, pair: LivePair) -> Guided | None:
        """The pair with its base beside it, where guidance is measured."""
        return None if self.gamma is None else Guided(pair=pair, gamma=self.gamma)

    @property
    def bootstrap(self) -> dict[str, int]:
        """How intervals are made."""
        return {"num_resamples": self.num_resamples, "seed": self.seed}

    def under(self, stage: str) -> OnProgress:
        """Progress with the model's name in front of the stage."""
        return lambda event: self.on_progress(replace(event, stage=f"{stage}, {event.stage}"))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Text:
    """A text cut for a base, and the base's losses on it.

    Attributes:
        sequences: What is measured.
        protocol: How.
        before: Losses of the base.
        checked: Sequences on which the fast protocol is checked.
        exact_before: Exact losses of the base on these.
    """

    sequences: Sequences
    protocol: Protocol
    before: SequenceLosses
    checked: tuple[int, ...]
    exact_before: SequenceLosses | None


class Measurement:
    """Measures a base once, and then the fine-tunes that are loaded or switched on.

    Args:
        request: What is measured.
        harness: The skills of the request, where they are loaded already.

    Raises:
        IntruscopeError: a skill cannot be loaded.
    """

    def __init__(self, request: Request, *, harness: Harness | None = None) -> None:
        self._request = request
        self._harness = harness or (Harness(request.skills) if request.skills.skills else None)
        self._text: _Text | None = None
        self._skills: tuple[ItemScores, ...] = ()

    def check_tasks(self, pair: LivePair) -> tuple[tuple[Task, ...], tuple[Finding, ...]]:
        """The tasks that a pair can be scored on, before any work is done, and a finding for each other one.

        Args:
            pair: A loaded fine-tune.

        Raises:
            IntruscopeError: a task of the wrong kind, or unknown labels.
        """
        scorable, findings = [], []
        for task in self._request.tasks:
            try:
                check_head(pair, task)
            except MalformedInput as error:  # a head that should be there is missing
                findings.append(_not_scored(task, error))
                self._request.on_notice(findings[-1].message)
                continue
            check_labels(pair, task)
            scorable.append(task)
        return tuple(scorable), tuple(findings)

    def measure_base(self, pair: LivePair) -> None:
        """Check that text and skills fit the model, then measure the base on them.

        Args:
            pair: The base, beside its first fine-tune or alone.

        Raises:
            IntruscopeError: there is no language-model head, the text does not fit, or a loss is not finite.
        """
        language = pair.language_model()
        if self._harness is not None:
            check_kind(language)
        with pair.as_base():
            if self._request.corpus is not None:
                self._text = self._measured_text(language, self._request.corpus, pair.description[0])
            if self._harness is not None:
                self._skills = self._harness.scores(
                    language, on_progress=self._request.under("skills of the base")
                )

    def report(
        self,
        pair: LivePair,
        names: tuple[str, str],
        *,
        tasks: Sequence[Task],
        findings: Sequence[Finding] = (),
        stage: str = "tuned",
    ) -> ForgettingReport:
        """Measure a fine-tune; to be called while the pair is in its tuned state.

        Args:
            pair: The live model.
            names: Names of the base and the fine-tune.
            tasks: Tasks that it can be scored on.
            findings: What is known about the others.
            stage: What its progress is called.

        Raises:
            IntruscopeError: a loss or a score is not finite.
        """
        request, language = self._request, pair.language_model()
        figures = {} if self._text is None else self._text_figures(self._text, pair, names[1], stage)
        scored, findings = [], list(findings)
        for task in tasks:
            try:
                scored.append(_task_figures(pair, task, request, stage))
            except IntruscopeError as error:
                findings.append(_not_scored(task, error))
        text = self._text
        return ForgettingReport(
            base=names[0],
            tuned=names[1],
            kind=language.kind,
            settings=ForgettingSettings(
                protocol=None if text is None else PROTOCOLS[text.protocol],
                unit=None if text is None else text.sequences.unit,
                context=None if text is None else text.sequences.context,
                stride=None if text is None else text.sequences.stride,
                max_sequences=request.max_sequences,
                seed=request.seed,
                num_resamples=request.num_resamples,
                device=str(language.model.device),
                dtype=request.dtype,
                gamma=request.gamma,
            ),
            **figures,
            tasks=tuple(scored),
            skills=self._skill_part(language, stage),
            findings=tuple(findings),
            environment=environment(
                ("torch", "transformers", "tokenizers", "peft", *(["lm-eval"] if self._harness else []))
            ),
        )

    def finished(self, reports: Sequence[ForgettingReport]) -> tuple[ForgettingReport, ...]:
        """The reports of one run, with the p of their skills adjusted for all of them together."""
        if self._harness is None:
            return tuple(reports)
        parts = [report.skills for report in reports if report.skills is not None]
        figures = adjusted([part.figures for part in parts])
        num_tests = sum(map(len, figures))
        return tuple(
            replace(report, skills=replace(part, figures=each, num_tests=num_tests))
            for report, part, each in zip(reports, parts, figures, strict=True)
        )

    def _measured_text(self, language: LanguageModel, corpus: Corpus, name: str) -> _Text:
        request = self._request
        protocol = choose_protocol(language.kind, request.protocol)
        sequences = cut(
            corpus,
            language,
            unit=request.unit,
            context=request.context,
            stride=request.stride,
            max_sequences=request.max_sequences,
        )
        checked: tuple[int, ...] = ()
        if protocol == "fast":
            checked = sequences_to_check(sequences)
            if not checked:
                protocol = "exact"
                request.on_notice(
                    f"the text has only {sequences.num_sequences} sequences: checking the fast protocol "
                    "would cost too much of what it saves, so the exact protocol is used"
                )
        before = self._losses(language, sequences, protocol, name, "base")
        exact = None
        if checked:
            exact = self._losses(
                language, sequences.only(checked), "exact", name, "checking the fast protocol, base"
            )
        return _Text(
            sequences=sequences, protocol=protocol, before=before, checked=checked, exact_before=exact
        )

    def _text_figures(self, text: _Text, pair: LivePair, name: str, stage: str) -> dict[str, Any]:
        """The fields of the report that are about the text."""
        request, corpus = self._request, self._request.corpus
        language, guided = pair.language_model(), request.guided(pair)
        assert corpus is not None
        before, bootstrap = text.before, request.bootstrap
        after = self._losses(language, text.sequences, text.protocol, name, stage, guided)
        fast_error = None
        if text.exact_before is not None:
            few = list(text.checked)
            exact_after = self._losses(
                language,
                text.sequences.only(text.checked),
                "exact",
                name,
                f"checking the fast protocol, {stage}",
                guided,
            )
            fast_error = intervals.paired_difference(
                exact_after.nats - text.exact_before.nats,
                (after.nats - before.nats)[few],
                before.tokens[few],
                **bootstrap,
            )
        return {
            "base_loss": _figures(before, bootstrap),
            "tuned_loss": _figures(after, bootstrap),
            "forgetting": intervals.paired_difference(before.nats, after.nats, before.tokens, **bootstrap),
            "forgetting_per_byte": intervals.paired_difference(
                before.nats, after.nats, before.bytes, **bootstrap
            ),
            "fast_error": fast_error,
            "num_checked": len(text.checked),
            "num_tokens": int(before.tokens.sum()),
            "num_bytes": int(before.bytes.sum()),
            "num_sequences": text.sequences.num_sequences,
            "num_left_out": text.sequences.num_left_out,
            "text_sha256": corpus.sha256,
            "texts": corpus.sources,
        }

    def _losses(
        self,
        language: LanguageModel,
        sequences: Sequences,
        protocol: Protocol,
        name: str,
        stage: str,
        guided: Guided | None = None,
    ) -> SequenceLosses:
        return measure(
            language,
            sequences,
            protocol=protocol,
            seed=self._request.seed,
            batch_tokens=self._request.batch_tokens,
            name=name,
            guided=guided,
            on_progress=lambda event: self._request.on_progress(replace(event, stage=stage)),
        )

    def _skill_part(self, language: LanguageModel, stage: str) -> SkillsPart | None:
        if self._harness is None:
            return None
        under = self._request.under(f"skills of {stage if stage != 'tuned' else 'the tuned model'}")
        after = self._harness.scores(language, on_progress=under)
        figures = skill_figures(self._skills, after, **self._request.bootstrap)
        return SkillsPart(
            settings=self._request.skills,
            chat_template=self._harness.uses_chat_template(language),
            num_tests=len(figures),
            figures=figures,
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


def _task_figures(pair: LivePair, task: Task, request: Request, stage: str) -> TaskFigures:
    """Score the pair in its present state, and its base beside it."""

    def scored(state: str, guided: Guided | None = None) -> TaskScore:
        return score(
            pair,
            task,
            unit=request.unit,
            batch_tokens=request.batch_tokens,
            max_tokens=request.max_task_tokens,
            guided=guided,
            on_progress=lambda event: request.on_progress(replace(event, stage=f"{task.name}, {state}")),
        )

    after = scored(stage, request.guided(pair))
    before: TaskScore | None = None
    if not needs_head(pair, task):
        with pair.as_base():
            before = scored("base" if stage == "tuned" else f"base for {stage}")
    difference, p = None, None
    if before is not None:
        if before.right_N is not None and after.right_N is not None:
            difference = intervals.accuracy_difference(before.right_N, after.right_N)
            p = intervals.mcnemar(before.right_N, after.right_N)
        else:
            difference = intervals.paired_difference(
                before.nats_N, after.nats_N, after.units_N, **request.bootstrap
            )
    return TaskFigures(
        name=task.name,
        metric=after.metric,
        num_examples=len(after.nats_N),
        tuned=_score_interval(after, request.bootstrap),
        base=None if before is None else _score_interval(before, request.bootstrap),
        difference=difference,
        mcnemar_p=p,
        num_truncated=after.num_truncated,
        sha256=task.sha256,
    )


def _score_interval(found: TaskScore, bootstrap: dict[str, int]) -> intervals.Interval:
    if found.right_N is not None:
        return intervals.wilson(int(found.right_N.sum()), len(found.right_N))
    return intervals.loss_per(found.nats_N, found.units_N, **bootstrap)
