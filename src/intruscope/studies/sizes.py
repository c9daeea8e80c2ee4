"""How large a grid is, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.studies.grid import Chain, Checkpoint, MergeSet, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intruscope.studies.grid import Work
    from intruscope.studies.recipes import RecipePlace
    from intruscope.studies.scale import Scale


@dataclass(frozen=True, kw_only=True)
class RecipeSize:
    """One study of a grid.

    Attributes:
        recipe: By name.
        num_arms: Arms over all tasks and seeds.
        num_runs: Pieces of work behind them.
        num_new: Of these, not asked for by the studies above.
        core_minutes: Of the new ones; None where nobody knows.
    """

    recipe: str
    num_arms: int
    num_runs: int
    num_new: int
    core_minutes: float | None


def core_seconds(work: Work, scale: Scale) -> float | None:
    """Seconds of one piece of work on one core; None where nobody knows."""
    if isinstance(work, Checkpoint):
        return None
    base = scale.base(work.base)
    if base.cost is None:
        return None
    if isinstance(work, Chain):
        return base.cost.chain
    if isinstance(work, MergeSet):
        return base.cost.merge_set
    share = work.examples / base.examples[work.task]
    is_wide = dict(work.options).get("rank") == base.rates.width
    return (base.cost.full_width if is_wide else 1.0) * (
        share * base.cost.training
        + base.cost.measuring
        + (base.cost.looks if work.look_every else 0.0)
        + (base.cost.interventions if work.interventions else 0.0)
    )


def sizes(places: Sequence[RecipePlace], scale: Scale) -> list[RecipeSize]:
    """The size of every study, in order, with what it adds to those before it.

    Args:
        places: Of one or several studies.
        scale: Theirs.
    """
    seen: set[str] = set()
    found = []
    for recipe in dict.fromkeys(place.recipe for place in places):
        own = [place for place in places if place.recipe == recipe]
        works = {place.work.key: place.work for place in own}
        new = {key: work for key, work in works.items() if key not in seen}
        seen |= works.keys()
        found.append(
            RecipeSize(
                recipe=recipe,
                num_arms=len(own),
                num_runs=len(works),
                num_new=len(new),
                core_minutes=_minutes(new.values(), scale),
            )
        )
    return found


def _minutes(works: Iterable[Work], scale: Scale) -> float | None:
    seconds = [core_seconds(work, scale) for work in works]
    return None if None in seconds else sum(each for each in seconds if each is not None) / 60.0


def kinds(places: Sequence[RecipePlace]) -> dict[str, int]:
    """How many runs, chains, checkpoints and sets of adapters there are, each counted once."""
    works = {place.work.key: place.work for place in places}.values()
    names = {Run: "runs", Chain: "chains", Checkpoint: "checkpoints", MergeSet: "sets of adapters"}
    return {name: sum(isinstance(work, kind) for work in works) for kind, name in names.items()}
