"""What a diagnosis reports, as frozen records; JSON: ``intruscope.diagnose/1``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from intruscope.diagnose.settings import DiagnoseSettings  # noqa: TC001 - decoding reads the hints
from intruscope.forgetting.intervals import Interval  # noqa: TC001 - as above
from intruscope.forgetting.records import ForgettingReport
from intruscope.records import notebook
from intruscope.records.report import Report
from intruscope.spectra.records import ScanReport
from intruscope.sweep.records import SweepReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.diagnose/1"

Part = Literal["forgetting", "skills", "fixes"]
Verdict = Literal["forgot", "no-forgetting", "unknown"]


@dataclass(frozen=True, kw_only=True)
class SkippedPart:
    """A part of the diagnosis that was not run.

    Attributes:
        part: Which.
        was_asked: Its data were given, so that the diagnosis is incomplete without it.
        reason: Why, and what to do.
    """

    part: Part
    was_asked: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fix:
    """One fix at the strength or weight that the sweep chose for it; figures of the evaluation half.

    Attributes:
        control: Name in ``--controls``.
        title: In words.
        strength: What is kept; None for a fix that is fitted to data.
        weight: Weight of the loss on text in the fit; None for other fixes.
        forgetting_change: Against the tuned model, in nats per token; negative is less forgetting.
        forgetting_share: The same as a share of the tuned model's forgetting; None without forgetting.
        task_change: Against the tuned model; positive is better for accuracy, worse for loss.
        is_certain: The interval of its change lies below 0, and the task costs at most what is allowed.
        command: The shell command that writes the fixed model; None for models without names.
    """

    control: str
    title: str
    strength: float | None
    weight: float | None
    forgetting_change: Interval
    forgetting_share: Interval | None
    task_change: Interval
    is_certain: bool
    command: str | None

    @property
    def setting(self) -> str:
        """The strength, or the weight, in words."""
        return f"weight {self.weight:g}" if self.weight is not None else f"{self.strength:g}"


@dataclass(frozen=True, kw_only=True)
class NextCommand:
    """A command to run next.

    Attributes:
        purpose: What it is for, as the start of a sentence.
        command: For a POSIX shell, complete.
    """

    purpose: str
    command: str


@dataclass(frozen=True, kw_only=True)
class DiagnoseReport(Report):
    """Whether a fine-tune broke its base, and what to do about it.

    Its table has one row per figure of forgetting and per fix.

    Attributes:
        base, tuned: Names of the models.
        settings: What was asked.
        verdict: ``forgot`` or ``no-forgetting`` by the interval of the loss on the text and by the skills;
            ``unknown`` where neither was measured.
        sentences: The answer in words: to "did I break it?", and to "what now?".
        scan: What changed in the weights.
        forgetting: What was forgotten; None where it was not measured.
        sweep: What fixes win back and cost; None where they were not compared.
        fixes: The fixes by the forgetting that is left on the choosing half, best first.
        skipped: Parts that were not run, with the reason.
        commands: What to run next.
    """

    schema = SCHEMA
    columns: ClassVar[dict[str, str]] = {
        "part": "string",
        "figure": "string",
        "estimate": "float64",
        "low": "float64",
        "high": "float64",
        "unit": "string",
    }

    base: str
    tuned: str
    settings: DiagnoseSettings
    verdict: Verdict
    sentences: tuple[str, ...]
    scan: ScanReport
    forgetting: ForgettingReport | None
    sweep: SweepReport | None
    fixes: tuple[Fix, ...]
    skipped: tuple[SkippedPart, ...]
    commands: tuple[NextCommand, ...]

    @property
    def complete(self) -> bool:
        """Whether every part whose data were given was run, and the scan saw every weight."""
        return self.scan.complete and not any(each.was_asked for each in self.skipped)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Intruders and chance, every figure of forgetting, and every fix."""
        totals = self.scan.totals
        yield "scan", "intruders", float(totals.num_intruders), None, None, "vectors"
        if totals.chance is not None:
            chance = totals.chance
            yield "scan", "by chance", chance.expected, chance.low, chance.high, "vectors"
        if self.forgetting is not None:
            for figure, model, estimate, low, high, unit in self.forgetting.rows():
                yield "forgetting", f"{figure}, {model}", estimate, low, high, unit
        for fix in self.fixes:
            found = fix.forgetting_change
            name = f"{fix.control} at {fix.setting}, change of forgetting"
            yield "fixes", name, found.estimate, found.low, found.high, "nats/token"

    def notebook(self) -> Sequence[str]:
        """The answer, the figures, and what to run next."""
        table = [
            (part, figure, f"{estimate:.4g}", "" if low is None else f"{low:.4g} to {high:.4g}", unit)
            for part, figure, estimate, low, high, unit in self.rows()
        ]
        return [
            notebook.line(f"{self.base} → {self.tuned}", "top"),
            *[notebook.line(text, "warn") for text in self.sentences],
            notebook.table("Figures", ("part", "figure", "estimate", "95% interval", "unit"), table),
            *[notebook.line(f"{each.part} was not measured: {each.reason}", "note") for each in self.skipped],
            *[notebook.line(f"{each.purpose}: {each.command}", "note") for each in self.commands],
        ]

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        parts = {"scan": self.scan, "forgetting": self.forgetting, "sweep": self.sweep}
        return {**laid_out, **{name: part and part.to_json() for name, part in parts.items()}}

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        kinds: dict[str, type[Report]] = {
            "scan": ScanReport,
            "forgetting": ForgettingReport,
            "sweep": SweepReport,
        }
        parts = {name: data[name] and kind.from_json(data[name]) for name, kind in kinds.items()}
        return {**data, **parts}
