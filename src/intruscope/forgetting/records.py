"""The figures of a forgetting measurement, as plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.forgetting.intervals import Interval  # noqa: TC001 - decoding reads the hints when it runs
from intruscope.forgetting.texts import TextSource  # noqa: TC001 - as above
from intruscope.records import notebook
from intruscope.records.report import Report
from intruscope.weights.matrices import Finding  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

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


_COLUMNS = {
    "figure": "string",
    "model": "string",
    "estimate": "float64",
    "low": "float64",
    "high": "float64",
    "unit": "string",
}
"""``figure`` is ``loss``, ``forgetting`` or a task; ``model`` is ``base``, ``tuned`` or ``tuned - base``."""


@dataclass(frozen=True, kw_only=True)
class ForgettingReport(Report):
    """How much a fine-tune forgot.

    Its table has one row per figure: the losses, their difference, and the scores on each task.

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

    schema = SCHEMA
    columns = _COLUMNS

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

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row per figure, with its interval."""
        nats = "nats/token"
        figures: list[tuple[str, str, Interval | None, str]] = [
            ("loss", "base", self.base_loss.nats_per_token, nats),
            ("loss", "tuned", self.tuned_loss.nats_per_token, nats),
            ("forgetting", "tuned - base", self.forgetting, nats),
            ("forgetting", "tuned - base", self.forgetting_per_byte, "nats/byte"),
        ]
        for task in self.tasks:
            figures += [
                (task.name, "base", task.base, task.metric),
                (task.name, "tuned", task.tuned, task.metric),
                (task.name, "tuned - base", task.difference, task.metric),
            ]
        for figure, model, found, unit in figures:
            if found is not None:
                yield figure, model, found.estimate, found.low, found.high, unit

    def notebook(self) -> Sequence[str]:
        """Forgetting with its interval, then every figure."""
        found = self.forgetting
        table = [
            (figure, model, f"{estimate:.4f}", f"{low:.4f} to {high:.4f}", unit)
            for figure, model, estimate, low, high, unit in self.rows()
        ]
        return [
            notebook.line(f"{self.base} → {self.tuned}", "top"),
            notebook.headline(
                f"{found.estimate:+.3f}",
                f"nats per token of forgetting ({found.low:+.3f} to {found.high:+.3f}), "
                f"{self.num_tokens} tokens in {self.num_sequences} sequences",
            ),
            notebook.table("Figures", ("figure", "model", "estimate", "95% interval", "unit"), table),
            notebook.line(f"Protocol {self.settings.protocol}; positive forgetting is worse.", "note"),
        ]

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        for name in ("base_loss", "tuned_loss"):
            if not math.isfinite(laid_out[name]["perplexity"]):
                laid_out[name]["perplexity"] = None
        return {
            **laid_out,
            "base": {"name": self.base, **_side(laid_out["base_loss"])},
            "tuned": {"name": self.tuned, **_side(laid_out["tuned_loss"])},
            "forgetting": {**laid_out["forgetting"], "unit": "nats/token"},
            "forgetting_per_byte": {**laid_out["forgetting_per_byte"], "unit": "nats/byte"},
            "protocol": self.settings.protocol,
        }

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        fields = {name: item for name, item in data.items() if name != "protocol"}
        for name in ("base", "tuned"):
            loss = data[f"{name}_loss"]
            fields[name] = data[name]["name"]
            fields[f"{name}_loss"] = {
                **loss,
                "perplexity": math.inf if loss["perplexity"] is None else loss["perplexity"],
            }
        for name in ("forgetting", "forgetting_per_byte"):
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
