"""Invalid requests, refused before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.errors import UsageError
from intruscope.extract.records import ChoiceKind, RankChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.writing.modules import TargetModule


def _is_count(value: float) -> bool:
    return value >= 1 and value == int(value)


_VALID: dict[ChoiceKind, tuple[str, str, Callable[[float], bool]]] = {
    "rank": ("must be a positive integer", "16", _is_count),
    "parameters": ("must be a positive integer", "2000000", _is_count),
    "energy": ("must be above 0 and at most 1", "0.9", lambda value: 0.0 < value <= 1.0),
    "error": ("must be at least 0 and below 1", "0.1", lambda value: 0.0 <= value < 1.0),
}
"""For each option that chooses ranks: its valid values, an example, and the test."""


def checked_choice(
    *, rank: int | None, energy: float | None, error: float | None, parameters: int | None
) -> RankChoice:
    """The one option given to choose the ranks.

    Raises:
        UsageError: none or several are given, or its value is invalid.
    """
    given: dict[ChoiceKind, float | None] = {
        "rank": rank,
        "energy": energy,
        "error": error,
        "parameters": parameters,
    }
    chosen_kinds: list[ChoiceKind] = [kind for kind, value in given.items() if value is not None]
    if len(chosen_kinds) != 1:
        found = f"{' and '.join(chosen_kinds)} were" if chosen_kinds else "none was"
        raise UsageError(
            f"{found} given, but exactly one of rank, energy, error and parameters must be",
            remedy="use for example --rank 16, or --energy 0.9",
        )
    kind = chosen_kinds[0]
    value = given[kind]
    assert value is not None
    must, example, is_valid = _VALID[kind]
    if not is_valid(value):
        raise UsageError(
            f"{kind} is {value:g}, but {must}",
            remedy=f"use for example --{kind} {example}",
        )
    return RankChoice(kind=kind, value=value)


def check_size(choice: RankChoice, modules: Sequence[TargetModule]) -> None:
    """Refuse ranks and budgets that are impossible for the selected matrices.

    Raises:
        UsageError: a rank above every matrix's smaller side, or a budget too small for a single direction.
    """
    if not modules:
        return
    largest = max(min(module.shape) for module in modules)
    if choice.kind == "rank" and choice.value > largest:
        raise UsageError(
            f"rank {choice.value:.0f} is impossible: no selected matrix has a rank above {largest}",
            remedy=f"use --rank {min(16, largest)}, or --energy 0.9 for a rank per matrix",
        )
    least = min(module.direction_size for module in modules)
    if choice.kind == "parameters" and choice.value < least:
        raise UsageError(
            f"{choice.value:.0f} parameters are too few: one direction of the smallest matrix takes {least}",
            remedy=f"use --parameters {16 * sum(m.direction_size for m in modules)} for rank 16 on average",
        )
