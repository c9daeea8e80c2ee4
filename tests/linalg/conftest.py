"""Small matrices on the Krylov path, and a record of everything it claims on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from intruscope.linalg import alignment, analysis, known, topk

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.linalg.alignment import Alignments
    from intruscope.linalg.certificates import TopAccount
    from intruscope.linalg.golub_kahan import RitzSystem


@dataclass
class Claims:
    """What the Krylov path claimed before it was done, in order."""

    bounds: list[Alignments] = field(default_factory=list)
    tuned_accounts: list[tuple[RitzSystem, TopAccount]] = field(default_factory=list)
    base_accounts: list[tuple[RitzSystem, TopAccount]] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    def clear(self) -> None:
        for claims in (self.bounds, self.tuned_accounts, self.base_accounts, self.floors):
            claims.clear()


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Claims:
    """Listen to the Krylov path: its bounds at every step, its accounts, its floors."""
    heard = Claims()

    def bounds(_: tuple[Any, ...], found: Alignments | None) -> None:
        if found is not None:
            heard.bounds.append(found)

    def tuned_account(args: tuple[Any, ...], found: TopAccount) -> None:
        heard.tuned_accounts.append((args[0], found))

    def base_account(args: tuple[Any, ...], found: TopAccount) -> None:
        heard.base_accounts.append((args[0], found))

    def floor(_: tuple[Any, ...], found: float) -> None:
        heard.floors.append(found)

    _listen(monkeypatch, alignment, "_bounds", bounds)
    _listen(monkeypatch, topk, "account_for_top", tuned_account)
    _listen(monkeypatch, known, "account_for_top", base_account)
    _listen(monkeypatch, known, "smallest_counted_value", floor)
    return heard


def _listen(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, hear: Callable[[tuple[Any, ...], Any], None]
) -> None:
    original = getattr(module, name)

    def listening(*args: Any, **named: Any) -> Any:
        found = original(*args, **named)
        hear(args, found)
        return found

    monkeypatch.setattr(module, name, listening)


@pytest.fixture
def krylov_when_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Krylov path from a smaller side of 100, with float32 products for float32 inputs."""
    monkeypatch.setattr(analysis, "DENSE_LIMIT", 100)
    monkeypatch.setattr(analysis, "_DOUBLE_ENTRIES", 0)
