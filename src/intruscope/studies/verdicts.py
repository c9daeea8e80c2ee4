"""From statements with intervals to a verdict.

Each claim of the paper is split into statements that a figure can support or contradict: the figure lies
above, below or within bounds that were set before the runs. A statement is *supported* where its whole
interval does what it says, *contradicted* where its whole interval does not, and *open* otherwise. All
statements of a claim share one level: with m of them each interval has level 1 - 0.05 / m (Bonferroni), so
that a claim that is false in every part is called true in a part at most once in twenty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.studies.estimates import Estimate

Outcome = Literal["holds", "holds in part", "does not hold", "undecided"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Finding = Literal["supported", "contradicted", "open", "not measured"]
_ERROR = 0.05
_NO_ESTIMATE = "too few runs, or all runs agree exactly"


class Unit(NamedTuple):
    """How a figure is read: its name after the number, and what the number is multiplied by."""

    name: str
    scale: float = 1.0

    @property
    def suffix(self) -> str:
        """Behind a number."""
        return f" {self.name}" if self.name else ""


PLAIN, NATS, POINTS, PERCENT = Unit(""), Unit("nats"), Unit("points", 100.0), Unit("%", 100.0)


def shared_level(num_statements: int) -> float:
    """Level of each interval, so that together they keep 95%."""
    return 1.0 - _ERROR / num_statements


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement that one figure decides.

    Attributes:
        text: As a sentence about the figure.
        estimate: None where it could not be measured.
        above: Lower bound that is claimed for the figure.
        below: Upper bound that is claimed for the figure.
        unit: Of the figure.
        is_aside: A control, or the claim of another version: shown, but not part of the verdict.
        missing: Why there is no estimate.
    """

    text: str
    estimate: Estimate | None
    above: float = float("-inf")
    below: float = float("inf")
    unit: Unit = PLAIN
    is_aside: bool = False
    missing: str = ""

    @property
    def finding(self) -> Finding:
        """What the figure says about the statement."""
        if self.estimate is None:
            return "not measured"
        if self.above < self.estimate.low and self.estimate.high < self.below:
            return "supported"
        if self.estimate.high < self.above or self.estimate.low > self.below:
            return "contradicted"
        return "open"

    @property
    def why_missing(self) -> str:
        """Why there is no estimate."""
        return self.missing or _NO_ESTIMATE

    def __str__(self) -> str:
        if self.estimate is None:
            return f"{self.text}: not measured ({self.why_missing})"
        value, low, high, seen = (
            f"{self.unit.scale * x:.3g}".replace("-", "−")
            for x in (
                self.estimate.estimate,
                self.estimate.low,
                self.estimate.high,
                self.estimate.detectable,
            )
        )
        unit = self.unit.suffix
        said = f"{self.text}: {value}{unit} ({low} to {high}; {self.estimate.size_text}), {self.finding}"
        if self.finding == "open":
            said += f"; a distance of {seen}{unit} from the bound would have been detected"
        return said


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """The verdict on a claim.

    Attributes:
        outcome: The verdict.
        reason: One paragraph: every statement with its figure.
        statements: All of them, asides last.
    """

    outcome: Outcome
    reason: str
    statements: tuple[Statement, ...]


def verdict(statements: Sequence[Statement]) -> ClaimVerdict:
    """The verdict on a claim.

    It *holds* where every statement is supported, *does not hold* where one is contradicted and none
    supported, holds *in part* where some are supported and others not, and is *undecided* where none is
    decided.
    """
    counted = [each for each in statements if not each.is_aside]
    findings = [each.finding for each in counted]
    outcome: Outcome
    if findings and all(found == "supported" for found in findings):
        outcome = "holds"
    elif "supported" in findings:
        outcome = "holds in part"
    elif "contradicted" in findings:
        outcome = "does not hold"
    else:
        outcome = "undecided"
    asides = [each for each in statements if each.is_aside]
    return ClaimVerdict(
        outcome=outcome,
        reason=". ".join(map(str, counted)) + "." + "".join(f" For comparison: {each}." for each in asides),
        statements=(*counted, *asides),
    )
