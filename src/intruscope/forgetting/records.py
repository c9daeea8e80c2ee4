"""The figures of a forgetting measurement, as plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from intruscope.forgetting.intervals import Interval
from intruscope.forgetting.settings import SkillSettings  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.forgetting.texts import TextSource  # noqa: TC001 - as above
from intruscope.forgetting.where import WhereReport  # noqa: TC001 - as above
from intruscope.records import notebook
from intruscope.records.report import Report
from intruscope.spectra.records import GateOutcome  # noqa: TC001 - as above
from intruscope.weights.matrices import Finding  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.forget/1"
FLEET_SCHEMA = "intruscope.forget-fleet/1"


@dataclass(frozen=True, kw_only=True)
class ForgettingSettings:
    """Everything that a figure depends on, apart from the models and the text.

    Attributes:
        protocol: Name and version, such as ``causal-cross-entropy/1``; None where no text was measured, as
            for unit and context.
        unit: What a sequence is: ``line`` or ``running``.
        context: Longest input in tokens.
        stride: Tokens scored in each further window; None for a masked model.
        max_sequences: Maximum number of sequences, sampled evenly; None for all.
        seed: Random seed of the fast protocol's masks and of the bootstrap.
        num_resamples: Number of bootstrap resamples.
        device: Where it was computed.
        dtype: Precision of weights and computation.
        gamma: Strength of adapter guidance; None where the tuned model itself was measured.
    """

    protocol: str | None
    unit: str | None
    context: int | None
    stride: int | None
    max_sequences: int | None
    seed: int
    num_resamples: int
    device: str
    dtype: str
    gamma: float | None = None


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
class SkillFigures:
    """One metric of one task of lm-evaluation-harness, before and after.

    Attributes:
        task: The harness's name of the task, or of a group whose tasks are pooled.
        metric: Such as ``acc`` or ``exact_match``.
        filter: How answers were extracted before scoring; ``none`` for likelihoods.
        higher_is_better: As the task says.
        num_items: Number of items.
        num_fewshot: Number of examples in each prompt.
        version: Version of the task; None where it has none.
        base: Mean of the base.
        tuned: Mean of the tuned model.
        difference: Tuned minus base, paired by item.
        num_lost: Items on which the tuned model does worse.
        num_won: Items on which it does better.
        p: That nothing changed: McNemar's exact test for right or wrong, sign flips for other scores.
        p_adjusted: The same, adjusted for all figures of the report by Holm's method.
        sha256: Hash of all prompts and targets.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    num_items: int
    num_fewshot: int
    version: str | None
    base: Interval
    tuned: Interval
    difference: Interval
    num_lost: int
    num_won: int
    p: float
    p_adjusted: float
    sha256: str

    @property
    def loss(self) -> Interval:
        """How much worse the tuned model is: positive where it lost, whichever way the metric counts."""
        found = self.difference
        if not self.higher_is_better:
            return found
        return Interval(estimate=-found.estimate, low=-found.high, high=-found.low, level=found.level)

    @property
    def label(self) -> str:
        """The task and its metric; the filter where there is one."""
        return f"{self.task} ({self.metric}{'' if self.filter == 'none' else ', ' + self.filter})"


@dataclass(frozen=True, kw_only=True)
class SkillsPart:
    """Tasks of lm-evaluation-harness, before and after.

    Attributes:
        settings: What was asked, and how.
        chat_template: The prompts were put into the chat template of the tokenizer.
        num_tests: Number of figures that ``p_adjusted`` is adjusted for: all of the run, so those of the
            other fine-tunes too where there are several.
        figures: One for each metric of each task.
    """

    settings: SkillSettings
    chat_template: bool
    num_tests: int
    figures: tuple[SkillFigures, ...]


_COLUMNS = {
    "figure": "string",
    "model": "string",
    "estimate": "float64",
    "low": "float64",
    "high": "float64",
    "unit": "string",
}
"""``figure`` is ``loss``, ``forgetting``, a task or a skill; ``model`` is ``base``, ``tuned`` or
``tuned - base``, with ``guided`` for ``tuned`` where guidance was measured."""


@dataclass(frozen=True, kw_only=True)
class ForgettingReport(Report):
    """How much a fine-tune forgot.

    Its table has one row per figure: the losses, their difference, and the scores on each task and skill.
    Without a text, the losses and the forgetting are None and everything counted in it is 0.

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
        text_sha256: Hash of the text; None without one.
        texts: Its sources.
        tasks: Scores on the tasks that could be scored.
        skills: Tasks of lm-evaluation-harness; None where none was asked for.
        where: The parts of the update that forgot and learned; None where this was not asked for.
        environment: Versions that a figure depends on.
        num_checked: Number of sequences on which the fast protocol was checked.
        findings: What the reader must know, such as tasks that could not be scored.
        gates: Outcome of each condition of ``--fail-on``.
    """

    schema = SCHEMA
    columns = _COLUMNS

    base: str
    tuned: str
    kind: str
    settings: ForgettingSettings
    base_loss: LossFigures | None = None
    tuned_loss: LossFigures | None = None
    forgetting: Interval | None = None
    forgetting_per_byte: Interval | None = None
    fast_error: Interval | None = None
    num_tokens: int = 0
    num_bytes: int = 0
    num_sequences: int = 0
    num_left_out: int = 0
    text_sha256: str | None = None
    texts: tuple[TextSource, ...] = ()
    tasks: tuple[TaskFigures, ...] = ()
    environment: dict[str, Any]
    num_checked: int = 0
    skills: SkillsPart | None = None
    where: WhereReport | None = None
    findings: tuple[Finding, ...] = ()
    gates: tuple[GateOutcome, ...] = ()

    @property
    def measured(self) -> str:
        """What is compared with the base: the ``tuned`` model, or the ``guided`` one."""
        return "tuned" if self.settings.gamma is None else "guided"

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per figure, with its interval."""
        nats, after = "nats/token", self.measured
        figures: list[tuple[str, str, Interval | None, str]] = [
            ("loss", model, None if loss is None else loss.nats_per_token, nats)
            for model, loss in (("base", self.base_loss), (after, self.tuned_loss))
        ]
        figures += [
            ("forgetting", f"{after} - base", self.forgetting, nats),
            ("forgetting", f"{after} - base", self.forgetting_per_byte, "nats/byte"),
        ]
        scored: list[tuple[str, str, TaskFigures | SkillFigures]] = [
            (task.name, task.metric, task) for task in self.tasks
        ]
        scored += [(each.task, each.metric, each) for each in (self.skills.figures if self.skills else ())]
        for name, metric, found in scored:
            figures += [
                (name, "base", found.base, metric),
                (name, after, found.tuned, metric),
                (name, f"{after} - base", found.difference, metric),
            ]
        for figure, model, interval, unit in figures:
            if interval is not None:
                yield figure, model, interval.estimate, interval.low, interval.high, unit

    def notebook(self) -> Sequence[str]:
        """Forgetting with its interval, then every figure."""
        found = self.forgetting
        table = [
            (figure, model, f"{estimate:.4f}", f"{low:.4f} to {high:.4f}", unit)
            for figure, model, estimate, low, high, unit in self.rows()
        ]
        pieces = [notebook.line(f"{self.base} → {self.tuned}", "top")]
        if found is not None:
            pieces.append(
                notebook.headline(
                    f"{found.estimate:+.3f}",
                    f"nats per token of forgetting ({found.low:+.3f} to {found.high:+.3f}), "
                    f"{self.num_tokens} tokens in {self.num_sequences} sequences",
                )
            )
        columns = ("figure", "model", "estimate", "95% interval", "unit")
        pieces.append(notebook.table("Figures", columns, table))
        if found is not None:
            note = f"Protocol {self.settings.protocol}; positive forgetting is worse."
            pieces.append(notebook.line(note, "note"))
        return pieces

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        sides = {}
        for name in ("base", "tuned"):
            loss = laid_out[f"{name}_loss"]
            if loss is not None and not math.isfinite(loss["perplexity"]):
                loss["perplexity"] = None
            sides[name] = {"name": laid_out[name], **({} if loss is None else _side(loss))}
        units = {}
        for name, unit in (("forgetting", "nats/token"), ("forgetting_per_byte", "nats/byte")):
            units[name] = None if laid_out[name] is None else {**laid_out[name], "unit": unit}
        return {**laid_out, **sides, **units, "protocol": self.settings.protocol}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        fields = {name: item for name, item in data.items() if name != "protocol"}
        for name in ("base", "tuned"):
            loss = data[f"{name}_loss"]
            fields[name] = data[name]["name"]
            if loss is not None:
                perplexity = math.inf if loss["perplexity"] is None else loss["perplexity"]
                fields[f"{name}_loss"] = {**loss, "perplexity": perplexity}
        for name in ("forgetting", "forgetting_per_byte"):
            if data[name] is not None:
                fields[name] = {key: item for key, item in data[name].items() if key != "unit"}
        return fields


def _side(loss: dict[str, Any]) -> dict[str, Any]:
    """The loss of one model, flat."""
    interval = loss["nats_per_token"]
    return {
        "loss": interval["estimate"],
        "low": interval["low"],
        "high": interval["high"],
        "unit": "nats/token",
        "nats_per_byte": loss["nats_per_byte"],
        "perplexity": loss["perplexity"],
    }


@dataclass(frozen=True, kw_only=True)
class FleetForgettingReport(Report):
    """How much each of several fine-tunes of one base forgot.

    Its table is that of every report, with the fine-tune in front.

    Attributes:
        base: Name of the base.
        labels: A short, unique name for each fine-tune.
        reports: One for each fine-tune, in the same order.
    """

    schema = FLEET_SCHEMA
    columns: ClassVar[dict[str, str]] = {"fine_tune": "string", **_COLUMNS}

    base: str
    labels: tuple[str, ...]
    reports: tuple[ForgettingReport, ...]

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per fine-tune and figure."""
        for label, report in zip(self.labels, self.reports, strict=True):
            for row in report.rows():
                yield label, *row

    def notebook(self) -> Sequence[str]:
        """Every report, one below the other."""
        return [piece for report in self.reports for piece in report.notebook()]

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        return {**laid_out, "reports": [report.to_json() for report in self.reports]}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "reports": [ForgettingReport.from_json(each) for each in data["reports"]]}
