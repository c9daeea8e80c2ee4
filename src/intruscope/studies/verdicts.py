"""From statements with intervals to a verdict.

Each claim of the paper is split into statements that a figure can support or contradict: the figure lies
above, below or within bounds that were set before the runs. A statement is *supported* where its whole
interval does what it says, *contradicted* where its whole interval does not, and *open* otherwise. It shows
*no effect* where its whole interval lies closer to nothing than the smallest effect worth having: that is a
result, which an open statement is not. All statements of a claim share one level: with m of them each
interval has level 1 - 0.05 / m (Bonferroni), so that a claim that is false in every part is called true in a
part at most once in twenty.

An average over tasks that disagree is no figure of any task. So a claim also has a verdict on each task, and
a statement is *mixed* where a test tells the tasks apart and they do not all lie on one side of its bound. A
claim may need something that its runs must show before it can be asked (a claim about intruders, some
intruders): tasks that do not show it do not count, and where all show the opposite the claim is *not testable
here*.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from intruscope.studies.estimates import heterogeneity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    from intruscope.studies.estimates import Estimate, Heterogeneity
    from intruscope.studies.evidence import Rows

Outcome = Literal[
    "holds", "holds in part", "mixed", "does not hold", "no effect", "undecided", "not testable here"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Finding = Literal["supported", "contradicted", "no effect", "mixed", "open", "not measured"]
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
        smallest: The smallest effect worth having: how far from ``nothing`` the figure must lie to matter.
            None for a statement that "no effect" cannot answer.
        nothing: The figure where there is no effect.
        unit: Of the figure.
        is_aside: A control, or the claim of another version: shown, but not part of the verdict.
        is_needed: Not claimed, but needed for the claim to mean something here.
        missing: Why there is no estimate.
        by_task: The estimate of each task alone.
    """

    text: str
    estimate: Estimate | None
    above: float = float("-inf")
    below: float = float("inf")
    smallest: float | None = None
    nothing: float = 0.0
    unit: Unit = PLAIN
    is_aside: bool = False
    is_needed: bool = False
    missing: str = ""
    by_task: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def finding(self) -> Finding:
        """What the figure says about the statement."""
        if self.estimate is None:
            return "not measured"
        sides = {self.above < each.estimate < self.below for each in self.by_task.values()}
        return "mixed" if len(sides) > 1 and self.tasks_differ else self._finding_of(self.estimate)

    @property
    def heterogeneity(self) -> Heterogeneity | None:
        """The test of whether the tasks' figures are one figure; None with fewer than two."""
        return heterogeneity(tuple(self.by_task.values()))

    @property
    def tasks_differ(self) -> bool:
        """Whether that test rejects, at the level of the statement's interval."""
        found = self.heterogeneity
        return found is not None and self.estimate is not None and found.p < 1.0 - self.estimate.level

    @property
    def why_missing(self) -> str:
        """Why there is no estimate."""
        return self.missing or _NO_ESTIMATE

    def _finding_of(self, found: Estimate) -> Finding:
        if self.smallest is not None and (
            self.nothing - self.smallest < found.low and found.high < self.nothing + self.smallest
        ):
            return "no effect"
        if self.above < found.low and found.high < self.below:
            return "supported"
        if found.high < self.above or found.low > self.below:
            return "contradicted"
        return "open"

    def __str__(self) -> str:
        if self.estimate is None:
            return f"{self.text}: not measured ({self.why_missing})"
        value, low, high, seen = (
            self._number(x)
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
        if self.finding == "mixed":
            each = ", ".join(f"{task} {self._number(one.estimate)}" for task, one in self.by_task.items())
            said += f"; the tasks differ: {each}"
        return said

    def _number(self, value: float) -> str:
        return f"{self.unit.scale * value:.3g}".replace("-", "−")


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
    """The verdict on a claim, by the first line that applies to its statements.

    - *not testable here*: something that is needed is contradicted;
    - *undecided*: something that is needed is not shown;
    - *holds*: every statement is supported;
    - *mixed*: some are mixed;
    - *holds in part*: some are supported;
    - *does not hold*: some are contradicted;
    - *no effect*: some show none;
    - *undecided*.
    """
    needed = [each for each in statements if each.is_needed]
    counted = [each for each in statements if not each.is_aside and not each.is_needed]
    asides = [each for each in statements if each.is_aside]
    shown = [*needed, *counted]
    return ClaimVerdict(
        outcome=_outcome({each.finding for each in needed}, {each.finding for each in counted}),
        reason=". ".join(map(str, shown)) + "." + "".join(f" For comparison: {each}." for each in asides),
        statements=(*shown, *asides),
    )


def _outcome(needed: Set[Finding], found: Set[Finding]) -> Outcome:
    if "contradicted" in needed:
        return "not testable here"
    if needed - {"supported"} or not found:
        return "undecided"
    if found == {"supported"}:
        return "holds"
    order: tuple[tuple[Finding, Outcome], ...] = (
        ("mixed", "mixed"),
        ("supported", "holds in part"),
        ("contradicted", "does not hold"),
        ("no effect", "no effect"),
    )
    return next((outcome for finding, outcome in order if finding in found), "undecided")


def over_tasks(
    judge: Callable[[Rows], list[Statement]], rows: Rows
) -> tuple[ClaimVerdict, dict[str, ClaimVerdict]]:
    """The verdict on a claim over all tasks that it can be asked on, and on each task alone.

    Args:
        judge: Of the claim.
        rows: Of all tasks.
    """
    alone = {
        task: judge([row for row in rows if row["task"] == task])
        for task in dict.fromkeys(row["task"] for row in rows)
    }
    testable = {
        task
        for task, statements in alone.items()
        if all(each.finding == "supported" for each in statements if each.is_needed)
    } or set(alone)
    pooled = [
        replace(
            statement,
            by_task={
                task: each
                for task in alone
                if task in testable and (each := alone[task][place].estimate) is not None
            },
        )
        for place, statement in enumerate(judge([row for row in rows if row["task"] in testable]))
    ]
    return verdict(pooled), {task: verdict(statements) for task, statements in alone.items()}
