"""The sentences of a profile."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from intruscope.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.forgetting.intervals import Interval
    from intruscope.profiling.records import Outcome, ShapeReport

COST_ONLY = "The cost of a step says nothing about how much the model learns in it."
MEMORY_HOLDS = (
    "Memory: the peak of all tensors during a step (weights, adapter, gradients, optimiser state, "
    "activations). Resident: the peak memory of the process in its first steps, minus what Python and its "
    "libraries used before; it includes gaps left by the allocator. One measurement each."
)
_SHOWN = 3


def spread(interval: Interval) -> str:
    """A ratio with its interval."""
    return f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def recommendation_sentence(
    outcome: Outcome,
    best: str | None,
    equals: Sequence[str],
    judged: Mapping[str, ShapeReport],
    labels: Mapping[str, str],
    null: Interval | None,
) -> str:
    """The recommendation, or why there is none."""
    if outcome == "faster":
        assert best is not None
        ratio = _ratio(judged[best])
        memory = judged[best].memory_ratio
        lines = [
            f"{_subject(labels[best])} is faster here: its step takes {spread(ratio)} of the time of full "
            "fine-tuning" + (f", and {memory:.2f} of its memory." if memory is not None else ".")
        ]
        if equals:
            lines.append(f"No measurable difference from {_listed([labels[name] for name in equals])}.")
        return " ".join([*lines, *_lora(judged, labels)])
    if outcome == "not-faster":
        nearest = min(judged, key=lambda name: _ratio(judged[name]).estimate)
        return " ".join(
            [
                "Nothing measured is faster than full fine-tuning here. The closest, "
                f"{labels[nearest]}, takes {spread(_ratio(judged[nearest]))} of the time of its step.",
                *_lora(judged, labels),
                *_least_memory(judged, labels),
            ]
        )
    if outcome == "undecided":
        return "Undecided: no setting is measurably faster than full fine-tuning here, but some may be."
    if outcome == "noisy":
        assert null is not None
        return (
            "No recommendation: two measurements of full fine-tuning differ by a factor of "
            f"{spread(null)} on this machine now."
        )
    if outcome == "too-few-rounds":
        return "No recommendation: too few rounds for an interval."
    return "No recommendation: full fine-tuning could not be measured, so there is nothing to compare with."


def reason_of(
    outcome: Outcome, judged: Mapping[str, ShapeReport], null: Interval | None, failure: str | None
) -> str:
    """The evidence behind the recommendation."""
    if outcome in ("faster", "not-faster", "undecided"):
        assert null is not None
        open_cases = sum(cell.verdict == "undecided" for cell in judged.values())
        undecided = (
            f" {open_cases} of {len(judged)} are undecided; raise --seconds to decide them."
            if open_cases
            else ""
        )
        return (
            f"Two measurements of full fine-tuning differ by a factor of {spread(null)}; a setting is called "
            "faster or slower only if its interval differs from 1 by more than that."
            f"{undecided} {COST_ONLY}"
        )
    if outcome == "noisy":
        return "Another program is running, or the machine's speed varies; try again when it is idle."
    if outcome == "too-few-rounds" and failure is None:
        return "Raise --seconds, lower --batch or --length, or compare fewer settings."
    return f"Full fine-tuning failed: {failure}."


def _lora(judged: Mapping[str, ShapeReport], labels: Mapping[str, str]) -> list[str]:
    """How LoRA compares: the question most people have."""
    cells = {name: cell for name, cell in judged.items() if labels[name].startswith("LoRA ")}
    if len(cells) < 2:
        return []
    words = {"faster": "faster", "slower": "slower", "alike": "as fast", "undecided": "undecided"}
    counts = Counter(cell.verdict for cell in cells.values())
    said = [f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict]]  # type: ignore[index]
    return [f"Of {len(cells)} LoRA settings: {', '.join(said)}."]


def _least_memory(judged: Mapping[str, ShapeReport], labels: Mapping[str, str]) -> list[str]:
    known = {name: cell.memory_ratio for name, cell in judged.items() if cell.memory_ratio is not None}
    if not known:
        return []
    least = min(known, key=lambda name: known[name])
    return [f"{_subject(labels[least])} needs the least memory: {known[least]:.2f} of full fine-tuning's."]


def _ratio(cell: ShapeReport) -> Interval:
    assert cell.ratios is not None
    return cell.ratios["step"]


def _subject(label: str) -> str:
    """The beginning of a sentence."""
    return f"Training the {label} alone" if label.startswith("last ") else label


def _listed(labels: Sequence[str]) -> str:
    shown = [printable(label) for label in labels[:_SHOWN]]
    return "; ".join([*shown, *([f"{len(labels) - _SHOWN} more"] if len(labels) > _SHOWN else [])])
