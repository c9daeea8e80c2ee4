"""When which setting is measured: rounds in random order, until they suffice or the time is up.

In each round every cell (a setting at a batch and length) is visited once, in an order drawn anew, so that
whatever else the machine does hits all alike. A round that could not be finished counts for none.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from intruscope.profiling.records import Phases, ProfileCell

    Samples = Mapping[ProfileCell, Sequence[Phases]]

Stopped = Literal["precise", "time", "lost"]
"""Why there were no more rounds: the intervals are narrow enough, the time is up, or the reference failed."""
_RECENT = 3


class OutOfTime(Exception):
    """The deadline passed while something was waited for."""


@dataclass
class Rounds:
    """What the rounds gave.

    Attributes:
        samples: Seconds by cell and round; cells of a setting that failed on the way have fewer.
        num_rounds: That were finished.
        stopped: Why there were no more.
        seconds_per_round: Of the last ones; None before the first.
    """

    samples: dict[ProfileCell, list[Phases]]
    num_rounds: int = 0
    stopped: Stopped = "time"
    seconds_per_round: float | None = None
    _durations: list[float] = field(default_factory=list)

    def finish(self, found: Mapping[ProfileCell, Phases], seconds: float) -> None:
        """Add a whole round."""
        for cell, phases in found.items():
            self.samples[cell].append(phases)
        self.num_rounds += 1
        self._durations.append(seconds)
        self.seconds_per_round = max(self._durations[-_RECENT:])


def run_rounds(
    cells: Sequence[ProfileCell],
    visit: Callable[[ProfileCell], Phases | None],
    *,
    clock: Callable[[], float],
    deadline: float,
    least: int,
    first_seconds: float,
    is_precise: Callable[[Samples], bool],
    needed: Collection[str],
    seed: int,
    on_round: Callable[[int], None] = lambda _: None,
) -> Rounds:
    """Visit the cells in rounds.

    Args:
        cells: What is measured.
        visit: Measures one; None where its setting failed, which is then left out; may raise
            :class:`OutOfTime`.
        clock: In seconds.
        deadline: By that clock; no round begins that would probably end after it.
        least: Rounds before it may stop for being precise.
        first_seconds: What the first round will probably take.
        is_precise: Whether the samples suffice.
        needed: Settings without which nothing can be compared: it stops where one fails.
        seed: Of the orders.
        on_round: Called with the number of finished rounds.
    """
    generator = random.Random(seed)  # noqa: S311 - an order, no secret
    alive = list(cells)
    rounds = Rounds(samples={cell: [] for cell in cells})
    while True:
        begun = clock()
        if begun + (rounds.seconds_per_round or first_seconds) > deadline:
            return rounds
        found: dict[ProfileCell, Phases] = {}
        failed: set[str] = set()
        for cell in generator.sample(alive, len(alive)):
            if cell.setting in failed:
                continue
            try:
                phases = visit(cell)
            except OutOfTime:
                return rounds
            if phases is not None:
                found[cell] = phases
                continue
            failed.add(cell.setting)
            if cell.setting in needed:
                rounds.stopped = "lost"
                return rounds
        alive = [cell for cell in alive if cell.setting not in failed]
        rounds.finish({cell: found[cell] for cell in alive}, clock() - begun)
        on_round(rounds.num_rounds)
        if rounds.num_rounds >= least and is_precise({cell: rounds.samples[cell] for cell in alive}):
            rounds.stopped = "precise"
            return rounds
