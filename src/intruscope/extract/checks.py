"""Requests that make no sense, refused before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.errors import UsageError
from intruscope.extract.records import ChoiceKind, RankChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.writing.modules import TargetModule


def _is_count(value: float) -> bool:
    return value >= 1 and value == int(value)


_SENSE: dict[ChoiceKind, tuple[str, str, Callable[[float], bool]]] = {
    "rank": ("a whole number from 1", "16", _is_count),
    "parameters": ("a whole number from 1", "2000000", _is_count),
    "energy": ("a share above 0 and up to 1", "0.9", lambda value: 0.0 < value <= 1.0),
    "error": ("a relative error from 0 and below 1", "0.1", lambda value: 0.0 <= value < 1.0),
}
"""What each way of choosing takes, an example, and the test of it."""


def checked_choice(
    *, rank: int | None, energy: float | None, error: float | None, parameters: int | None
) -> RankChoice:
    """The one way to choose ranks that was given.

    Raises:
        UsageError: none or several, or a value without meaning.
    """
    given: dict[ChoiceKind, float | None] = {
        "rank": rank,
        "energy": energy,
        "error": error,
        "parameters": parameters,
    }
    chosen_kinds: list[ChoiceKind] = [kind for kind, value in given.items() if value is not None]
    if len(chosen_kinds) != 1:
        got = " and ".join(chosen_kinds) or "none of them"
        raise UsageError(
            f"got {got}, expected one of rank, energy, error and parameters to choose the ranks by",
            remedy="give for example --rank 16, or --energy 0.9",
        )
    kind = chosen_kinds[0]
    value = given[kind]
    assert value is not None
    expected, example, is_sound = _SENSE[kind]
    if not is_sound(value):
        raise UsageError(
            f"got the {kind} {value:g}, expected {expected}",
            remedy=f"write for example --{kind} {example}",
        )
    return RankChoice(kind=kind, value=value)


def check_size(choice: RankChoice, modules: Sequence[TargetModule]) -> None:
    """Refuse ranks and budgets that no matrix can have.

    Raises:
        UsageError: a rank above all sides, or a budget below one direction.
    """
    if not modules:
        return
    largest = max(min(module.shape) for module in modules)
    if choice.kind == "rank" and choice.value > largest:
        raise UsageError(
            f"got the rank {choice.value:.0f}, expected at most {largest}: none of the matrices can have a "
            "higher one",
            remedy=f"give --rank {min(16, largest)}, or --energy 0.9 to let each matrix choose",
        )
    least = min(module.direction_size for module in modules)
    if choice.kind == "parameters" and choice.value < least:
        raise UsageError(
            f"got {choice.value:.0f} parameters, expected at least {least}, which one direction of the "
            "smallest matrix takes",
            remedy=f"give --parameters {16 * sum(m.direction_size for m in modules)} for rank 16 on average",
        )
