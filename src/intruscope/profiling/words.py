"""What a profile says in plain words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from intruscope.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.forgetting.intervals import Interval
    from intruscope.profiling.records import CellReport, Outcome

COST_ONLY = "What a step costs says nothing of how much is learnt in it."
MEMORY_HOLDS = (
    "Memory: the most that tensors took at any moment of a step: weights, what the method adds, gradients, "
    "the optimiser's state, activations. Resident: the most that the process held in its first steps, less "
    "what Python and its libraries took before; the allocator's holes are in it. One measurement each."
)
_SHOWN = 3


def spread(interval: Interval) -> str:
    """A ratio with its interval."""
    return f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def recommendation_sentence(
    outcome: Outcome,
    best: str | None,
    equals: Sequence[str],
    judged: Mapping[str, CellReport],
    labels: Mapping[str, str],
    null: Interval | None,
) -> str:
    """What is recommended, or that nothing is."""
    if outcome == "faster":
        assert best is not None
        ratio = _ratio(judged[best])
        memory = judged[best].memory_ratio
        lines = [
            f"{_subject(labels[best])} takes {spread(ratio)} of full fine-tuning's step: faster here"
            + (f", and needs {memory:.2f} of its memory." if memory is not None else ".")
        ]
        if equals:
            lines.append(f"It cannot be told apart from {_listed([labels[name] for name in equals])}.")
        return " ".join([*lines, *_lora(judged, labels)])
    if outcome == "not-faster":
        nearest = min(judged, key=lambda name: _ratio(judged[name]).estimate)
        return " ".join(
            [
                "Nothing that was tried is faster than full fine-tuning here: the nearest, "
                f"{labels[nearest]}, takes {spread(_ratio(judged[nearest]))} of its step.",
                *_lora(judged, labels),
                *_least_memory(judged, labels),
            ]
        )
    if outcome == "undecided":
        return "Nothing can be told to be faster than full fine-tuning here, nor that nothing is."
    if outcome == "noisy":
        assert null is not None
        return (
            f"No recommendation: full fine-tuning takes {spread(null)} of its own step on this machine now."
        )
    if outcome == "too-few-rounds":
        return "No recommendation: too few rounds for an interval."
    return "No recommendation: full fine-tuning could not be measured, so there is nothing to compare with."


def reason_of(
    outcome: Outcome, judged: Mapping[str, CellReport], null: Interval | None, failure: str | None
) -> str:
    """Why that is said, and no more."""
    if outcome in ("faster", "not-faster", "undecided"):
        assert null is not None
        open_cases = sum(cell.verdict == "undecided" for cell in judged.values())
        undecided = (
            f" {open_cases} of {len(judged)} are undecided: give more --seconds." if open_cases else ""
        )
        return (
            f"Full fine-tuning, measured twice, takes {spread(null)} of its own step; a setting is called "
            "faster or slower only where its interval is clear of 1 by more than that."
            f"{undecided} {COST_ONLY}"
        )
    if outcome == "noisy":
        return "Something else runs, or the machine changes its pace: try again when it is quiet."
    if outcome == "too-few-rounds" and failure is None:
        return "Give more --seconds, a smaller --batch or --length, or fewer settings."
    return f"Full fine-tuning failed: {failure}."


def _lora(judged: Mapping[str, CellReport], labels: Mapping[str, str]) -> list[str]:
    """The question that most people have."""
    cells = {name: cell for name, cell in judged.items() if labels[name].startswith("LoRA ")}
    if len(cells) < 2:
        return []
    words = {"faster": "faster", "slower": "slower", "alike": "as fast", "undecided": "undecided"}
    counts = Counter(cell.verdict for cell in cells.values())
    said = [f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict]]  # type: ignore[index]
    return [f"LoRA, {len(cells)} settings: {', '.join(said)}."]


def _least_memory(judged: Mapping[str, CellReport], labels: Mapping[str, str]) -> list[str]:
    known = {name: cell.memory_ratio for name, cell in judged.items() if cell.memory_ratio is not None}
    if not known:
        return []
    least = min(known, key=lambda name: known[name])
    return [f"{_subject(labels[least])} needs the least memory: {known[least]:.2f} of full fine-tuning's."]


def _ratio(cell: CellReport) -> Interval:
    assert cell.ratios is not None
    return cell.ratios["step"]


def _subject(label: str) -> str:
    """The beginning of a sentence."""
    return f"Training the {label} alone" if label.startswith("last ") else label


def _listed(labels: Sequence[str]) -> str:
    shown = [printable(label) for label in labels[:_SHOWN]]
    return "; ".join([*shown, *([f"{len(labels) - _SHOWN} more"] if len(labels) > _SHOWN else [])])
