"""What became of the facts, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intruscope.forgetting.intervals import Interval
    from intruscope.knowledge.records import KnowledgeReport


def knowledge_sentence(report: KnowledgeReport) -> str:
    """What was lost and gained, beside what other prompts alone do."""
    found = report.judged
    which = "facts that it was not trained on" if report.untrained is not None else "facts"
    lost, gained = found.negative_shift, found.positive_shift
    said = (
        f"Of {found.facts:,} {which}, the fine-tune lost {share(lost)} and gained {share(gained)}. "
        f"Asked with other prompts, the base itself loses {share(found.null_shift)}"
    )
    beyond = found.negative_beyond_null
    if beyond.low > 0:
        return f"{said}: the fine-tune lost more than that."
    if beyond.high < 0:
        return f"{said}, more than the fine-tune lost."
    return f"{said}; the two cannot be told apart."


def reliability_sentence(report: KnowledgeReport) -> str | None:
    """How well the trained facts were learned; None where nobody said which these are."""
    if report.reliability is None or report.base_reliability is None or report.trained is None:
        return None
    return (
        f"The {report.trained.facts:,} trained facts are answered right {share(report.reliability)} of the "
        f"time (base: {report.base_reliability.estimate:.1%})."
    )


def share(interval: Interval) -> str:
    """A share with its interval, in percent."""
    estimate, low, high = (f"{100 * each:.1f}" for each in (interval.estimate, interval.low, interval.high))
    return f"{estimate}% ({low} to {high})".replace("-0.0", "0.0").replace("-", "−")
