"""The studies of the paper, each a function from a cell (base, task, seed) to its arms.

An arm is the part that a run plays in a study; several arms of several studies may be one run. All of them
are made by :class:`StudyCell`, so that nothing is set in two places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intruscope.studies.claims_merging import OWN_STARTS, SAME_START
from intruscope.studies.grid import Chain, MergeSet, Run, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from intruscope.studies.scale import Base, Scale

_EDITED = (1, 8)
"""Ranks whose runs are intervened on (the paper's table 3)."""
_WATCHED = (1, 8, 64)
"""Ranks, and full width besides, whose runs are watched: C5, C12 and C23 need looks."""
_LAST_TWIN = 16
"""Up to this rank alpha 8 has its twin's product of alpha and rate, beyond it this one's."""
_ADALORA_START = 12
_SAME_START_SEED = 0
_PICTURED_SEED = 0
"""A picture of one run is of this one, chosen before any ran."""


@dataclass(frozen=True)
class StudyCell:
    """One base, task and seed, and every run that a study makes there."""

    base: Base
    task: str
    seed: int

    def full(self, rate: float | None = None) -> Run:
        """Full fine-tuning; watched at rates up to the usual one."""
        usual = self.base.rates.full
        chosen = usual if rate is None else rate
        return self._run("full", (), chosen, watched=chosen <= usual)

    def lora(self, rank: int, rate: float | None = None, *, share: float = 1.0) -> Run:
        """LoRA at alpha twice the rank, on a share of the examples."""
        usual = self.base.rates.lora[rank]
        is_usual = rate is None and share == 1.0
        run = self._run(
            "lora",
            (("alpha", 2.0 * rank), ("rank", rank)),
            usual if rate is None else rate,
            watched=is_usual and rank in (*_WATCHED, self.base.rates.width),
            edited=is_usual and rank in _EDITED,
        )
        return replace(run, examples=max(1, round(share * run.examples)))

    def alpha8(self, rank: int) -> Run:
        """LoRA at alpha 8; alpha times the rate is that of the twin at twice the rank, and at most rank 16's.

        The paper has one such product for all ranks. At their twins' own, which grow with the rank at mini,
        8 of 8 runs of rank 64 and of full width learned nothing on either base (LOG.md, 2026-11-26).
        """
        twin = min(rank, _LAST_TWIN)
        rate = 2.0 * twin * self.base.rates.lora[twin] / 8.0
        return self._run("lora", (("alpha", 8.0), ("rank", rank)), rate)

    def method(self, name: str) -> Run:
        """Another method beside LoRA at rank 8, with the same scale of the update where it has one.

        LoRA+ takes a quarter of LoRA's rate for A and sixteen times that for B, so that their geometric mean
        is LoRA's. PiSSA, whose factors start large, takes a quarter. AdaLoRA's alpha is over its rank at the
        start. None of these was tuned.
        """
        rate = self.base.rates.lora[8]
        scaled = (("alpha", 16.0), ("rank", 8.0))
        found = {
            "b_only": (scaled, rate),
            "adalora": (
                (("alpha", 2.0 * _ADALORA_START), ("rank", 8.0), ("start_rank", float(_ADALORA_START))),
                rate,
            ),
            "lora_plus": (scaled, rate / 4),
            "pissa": (scaled, rate / 4),
            "vera": ((), self.base.rates.vera),
        }
        options, chosen = found[name]
        return self._run(name, options, chosen)

    def _run(
        self,
        method: str,
        options: tuple[tuple[str, float], ...],
        rate: float,
        *,
        watched: bool = False,
        edited: bool = False,
    ) -> Run:
        base = self.base
        return Run(
            base=base.name,
            task=self.task,
            method=method,
            options=tuple((name, float(value)) for name, value in options),
            rate=rate,
            seed=self.seed,
            examples=base.examples[self.task],
            epochs=base.epochs,
            batch=base.batch,
            max_length=base.max_length,
            bf16=base.bf16,
            group_by_length=base.group_by_length,
            look_every=base.look_every if watched else 0,
            interventions=edited,
        )


def _lora_ranks(cell: StudyCell) -> dict[str, Run]:
    ranks = {f"lora_r{rank}": cell.lora(rank) for rank in (1, 8, 16, 64)}
    return {**ranks, "lora_full_width": cell.lora(cell.base.rates.width)}


def counts(cell: StudyCell) -> dict[str, Run]:
    """Figure 4, C1, C2, C4, C22: LoRA at every rank beside full fine-tuning."""
    return {"full": cell.full(), **_lora_ranks(cell)}


def is_pictured(run: Run, base: Base) -> bool:
    """Whether similarity maps and single intruders' courses are kept of a run: the counts' at seed 0.

    Args:
        run: A run.
        base: Its base.
    """
    return run.seed == _PICTURED_SEED and run in counts(StudyCell(base, run.task, run.seed)).values()


def rates(cell: StudyCell) -> dict[str, Run]:
    """Figure 7, C3, C13, C23: learning rates of LoRA r = 8 and of full fine-tuning."""
    given = cell.base.rates
    return {
        "low": cell.lora(8, given.low),
        "mid": cell.lora(8),
        "high": cell.lora(8, given.high),
        "full_lowest": cell.full(given.full_lowest),
        "full_low": cell.full(given.full_low),
        "full_mid": cell.full(),
        "full_high": cell.full(given.full_high),
        "full_high_rate": cell.full(given.full_high),
    }


def trajectory(cell: StudyCell) -> dict[str, Run]:
    """Figure 5, C5: an intruder from its birth on."""
    return {"lora_r8": cell.lora(8)}


def data_size(cell: StudyCell) -> dict[str, Run]:
    """Appendix J, C6: a quarter, a half and all of the examples, one number of passes."""
    return {
        f"r{rank}_{name}": cell.lora(rank, share=share)
        for rank in (1, 8)
        for name, share in (("quarter", 0.25), ("half", 0.5), ("whole", 1.0))
    }


def alpha(cell: StudyCell) -> dict[str, Run]:
    """C7, C8 and appendix H: alpha 8 beside alpha 2r, and effective ranks."""
    width = cell.base.rates.width
    return {
        "full": cell.full(),
        "lora_r64": cell.lora(64),
        "lora_full_width": cell.lora(width),
        **{f"alpha2r_r{rank}": cell.lora(rank) for rank in (16, 64)},
        **{f"alpha8_r{rank}": cell.alpha8(rank) for rank in (16, 64)},
        "alpha8_full_width": cell.alpha8(width),
    }


def methods(cell: StudyCell) -> dict[str, Run]:
    """C9 and C11: other methods beside LoRA r = 8."""
    others = ("b_only", "adalora", "lora_plus", "pissa", "vera")
    return {"lora_r8": cell.lora(8), **{name: cell.method(name) for name in others}}


def equal_fit(cell: StudyCell) -> dict[str, Run]:
    """Figure 6, C12: forgetting where the held-out loss is equal."""
    return {name: run for name, run in counts(cell).items() if run.look_every}


def correlations(cell: StudyCell) -> dict[str, Run]:
    """Figure 8, C14, C15, C21: every rank, alpha and rate of LoRA, and full fine-tuning at every rate.

    Of a task that takes no part in the studies of rates or alpha, what it has; nothing is run for this alone.
    """
    found = counts(cell)
    if cell.base.takes_part(cell.task, rates.__name__):
        of_rates = rates(cell)
        found |= {f"lora_r8_{name}": of_rates[name] for name in ("low", "high")}
        found |= {name: of_rates[name] for name in ("full_lowest", "full_low", "full_high")}
    if cell.base.takes_part(cell.task, alpha.__name__):
        found |= {name: run for name, run in alpha(cell).items() if name.startswith("alpha8")}
    return found


def interventions(cell: StudyCell) -> dict[str, Run]:
    """Figure 12 and table 3, C16 to C18: intruders turned down and up, beside every control."""
    return {f"lora_r{rank}": cell.lora(rank) for rank in _EDITED}


def sequence(base: Base, seed: int) -> dict[str, Chain]:
    """Figures 8 and 9 (v1: 17), C19, C20, C24: task after task."""
    if base.turns is None:
        return {}
    cell = StudyCell(base, base.tasks[0], seed)
    alone = {"full": cell.full()} | {f"lora_r{rank}": cell.lora(rank) for rank in (1, 8, 64)}
    alone |= {f"alpha8_r{rank}": cell.alpha8(rank) for rank in (1, 8, 64)}
    return {
        arm: Chain(
            base=base.name,
            tasks=base.turns.tasks,
            method=run.method,
            options=run.options,
            rate=run.rate,
            seed=seed,
            examples=base.turns.examples,
            head_examples=base.turns.head_examples,
            eval_examples=base.turns.eval_examples,
            epochs=base.epochs,
            batch=base.batch,
            max_length=base.max_length,
            bf16=base.bf16,
            group_by_length=base.group_by_length,
        )
        for arm, run in alone.items()
    }


def merging(base: Base, seed: int) -> dict[str, MergeSet]:
    """Ours, M1 to M3: one adapter for each task, merged; and some from one start, at the first seed only."""
    plan = base.merging
    if plan is None:
        return {}
    own = MergeSet(
        base=base.name,
        tasks=plan.tasks,
        method="lora",
        options=(("alpha", 16.0), ("rank", 8.0)),
        rate=plan.rate,
        seed=seed,
        same_start=False,
        steps=plan.steps,
        batch=plan.batch,
        max_lengths=plan.max_lengths,
        bf16=plan.bf16,
        score_bf16=plan.score_bf16,
        held_out=plan.held_out,
        choosing_every=plan.choosing_every,
        text_sequences=plan.text_sequences,
        sizes=plan.sizes,
        strengths=plan.strengths,
    )
    if seed != _SAME_START_SEED:
        return {OWN_STARTS: own}
    same = replace(
        own,
        same_start=True,
        tasks=plan.tasks[: plan.same_start],
        steps=plan.steps[: plan.same_start],
        max_lengths=plan.max_lengths[: plan.same_start],
        sizes=tuple(size for size in plan.sizes if size <= plan.same_start),
    )
    return {OWN_STARTS: own, SAME_START: same}


RECIPES: Mapping[str, Callable[[StudyCell], dict[str, Run]]] = {
    recipe.__name__: recipe
    for recipe in (
        counts,
        rates,
        trajectory,
        data_size,
        alpha,
        methods,
        equal_fit,
        correlations,
        interventions,
    )
}
SEQUENCE, MERGING = "sequence", "merging"
_OF_BASES: Mapping[str, Callable[[Base, int], Mapping[str, Chain | MergeSet]]] = {
    SEQUENCE: sequence,
    MERGING: merging,
}
"""Studies of a base, not of one of its tasks."""
_WITH_CHECKPOINTS = ("counts", "rates", "alpha")


@dataclass(frozen=True, kw_only=True)
class RecipePlace:
    """An arm of a recipe, filled by a run.

    Attributes:
        recipe: The study.
        arm: The part in it.
        task: As the study's rows name it.
        seed: Of the run.
        work: What is run.
    """

    recipe: str
    arm: str
    task: str
    seed: int
    work: Work


def places(
    scale: Scale, recipes: Iterable[str] | None = None, *, of_seeds: Sequence[int] | None = None
) -> list[RecipePlace]:
    """Every arm of some recipes at a scale, seed by seed, so that what is interrupted covers all tasks.

    Args:
        scale: Bases, tasks and seeds.
        recipes: By name; all by default.
        of_seeds: Instead of the scale's.
    """
    wanted = list(dict.fromkeys([*RECIPES, *_OF_BASES] if recipes is None else recipes))
    found: list[RecipePlace] = []
    for seed in scale.seeds if of_seeds is None else of_seeds:
        for base in scale.bases:
            for name in wanted:
                if name in _OF_BASES:
                    found += [
                        RecipePlace(recipe=name, arm=arm, task=base.name, seed=seed, work=work)
                        for arm, work in _OF_BASES[name](base, seed).items()
                    ]
                    continue
                for task in base.tasks:
                    if not base.takes_part(task, name):
                        continue
                    arms = RECIPES[name](StudyCell(base, task, seed))
                    found += [
                        RecipePlace(recipe=name, arm=arm, task=task, seed=seed, work=r)
                        for arm, r in arms.items()
                    ]
    for name in wanted:
        if name in _WITH_CHECKPOINTS:
            found += [
                RecipePlace(recipe=name, arm=c.arm, task=c.task, seed=0, work=c) for c in scale.checkpoints
            ]
    return found
