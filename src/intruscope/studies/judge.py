"""Records to verdicts: the rows of each claim's study, before the function that decides it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.studies.claims import claims_of
from intruscope.studies.evidence import number_of_runs
from intruscope.studies.lives import with_equal_fit, without_unfit
from intruscope.studies.recipes import places
from intruscope.studies.records import COMMITTED, FILE, read_results, rows_of
from intruscope.studies.scales import find_scale
from intruscope.studies.verdicts import over_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set
    from pathlib import Path

    from intruscope.studies.claims import Claim
    from intruscope.studies.recipes import RecipePlace
    from intruscope.studies.records import Record
    from intruscope.studies.verdicts import ClaimVerdict, Statement

SCHEMA = "intruscope.studies/1"
NOT_RUN = "not run"
FEWEST_SEEDS = 2
"""Per task; with one there is no variation over seeds, and nothing can be decided."""
SHOWN_SCALES = ("mini", "paper")
"""Whose results are shown where several are committed: the last that is there."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its verdict.

    Attributes:
        claim: The claim.
        verdict: None where nothing of its study was run.
        num_runs: Number of runs that count.
        num_left_out: Number of runs excluded by the rules.
        num_planned: Of its study at this scale, and those of other seeds that are there besides.
        seeds: Of those that count.
        outcome_with_all: The verdict if the runs that learned nothing did count; None where there are none.
        by_task: The verdict on each task alone.
        bases: The base of each task.
    """

    claim: Claim
    verdict: ClaimVerdict | None
    num_runs: int
    num_left_out: int
    num_planned: int
    seeds: tuple[int, ...]
    outcome_with_all: str | None = None
    by_task: Mapping[str, ClaimVerdict] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every run that was planned is there."""
        return self.num_runs + self.num_left_out == self.num_planned

    @property
    def reason(self) -> str:
        """One paragraph."""
        if self.verdict is None:
            return NOT_RUN
        return self._what_is_missing() + self.verdict.reason + self._what_is_left_out()

    @property
    def with_all_text(self) -> str:
        """How including the excluded runs would change the verdict; empty if there are none."""
        if self.verdict is None or self.outcome_with_all is None:
            return ""
        if self.outcome_with_all == self.verdict.outcome:
            return "including them would not change the verdict"
        return f"including them would change it to “{self.outcome_with_all}”"

    @property
    def outcome_text(self) -> str:
        """The verdict, as a table shows it."""
        if self.verdict is None:
            return NOT_RUN
        return self.verdict.outcome if self.is_whole else f"{self.verdict.outcome} so far"

    @property
    def runs_text(self) -> str:
        """Runs that count, as a table shows them."""
        planned = "" if self.is_whole or self.verdict is None else f" of {self.num_planned}"
        left_out = f" (+{self.num_left_out} left out)" if self.num_left_out else ""
        return f"{self.num_runs}{planned}{left_out}"

    def _what_is_left_out(self) -> str:
        if not self.num_left_out:
            return ""
        with_all = f"; {self.with_all_text}" if self.with_all_text else ""
        return f" {self.num_left_out} runs learned too little and are left out{with_all}."

    def _what_is_missing(self) -> str:
        if self.is_whole:
            return ""
        finished = self.num_runs + self.num_left_out
        return f"Preliminary, from {finished} of {self.num_planned} planned runs. "


def judge(
    scale_name: str, records: Mapping[str, Record], *, claims: Sequence[Claim] | None = None
) -> list[Judged]:
    """The verdict on each claim.

    Args:
        scale_name: Of the study.
        records: By key.
        claims: Those of the scale by default.
    """
    every = places_with(scale_name, records)
    rows = study_rows(scale_name, records)
    planned = {place.work.key for place in places(find_scale(scale_name))} | records.keys()
    return [
        _judged(
            claim,
            [place for place in every if place.recipe == claim.recipe],
            rows.get(claim.recipe, []),
            planned,
        )
        for claim in (claims_of(scale_name) if claims is None else claims)
    ]


def too_few_seeds(claims: Sequence[Claim], found: Sequence[RecipePlace]) -> list[Claim]:
    """The claims that stay undecided however their runs turn out, for want of seeds.

    Args:
        claims: To be decided.
        found: Every arm that there is or will be.
    """
    seeds: dict[tuple[str, str], set[int]] = {}
    for place in found:
        seeds.setdefault((place.recipe, place.task), set()).add(place.seed)
    most = dict.fromkeys((claim.recipe for claim in claims), 0)
    for (recipe, _), own in seeds.items():
        if recipe in most:
            most[recipe] = max(most[recipe], len(own))
    return [claim for claim in claims if most[claim.recipe] < FEWEST_SEEDS]


def places_with(scale_name: str, records: Mapping[str, Record]) -> list[RecipePlace]:
    """The arms of a scale, and of whatever other seeds the records hold."""
    scale = find_scale(scale_name)
    usual = places(scale)
    seeds = {record["settings"].get("seed", 0) for record in records.values()}
    further = sorted(seeds - {place.seed for place in usual})
    return usual + (places(scale, of_seeds=further) if further else [])


def study_rows(scale_name: str, records: Mapping[str, Record]) -> dict[str, list[Record]]:
    """Rows of every recipe that has some, those of seeds outside the scale's included.

    Verdicts, tables and pictures are of these rows, so that what does not count in one counts in none.
    """
    fit = without_unfit(records)
    by_recipe: dict[str, list[RecipePlace]] = {}
    for place in places_with(scale_name, records):
        by_recipe.setdefault(place.recipe, []).append(place)
    found = {recipe: with_equal_fit(rows_of(own, fit)) for recipe, own in by_recipe.items()}
    return {recipe: rows for recipe, rows in found.items() if rows}


def _judged(claim: Claim, found: Sequence[RecipePlace], rows: Sequence[Record], planned: Set[str]) -> Judged:
    once: dict[str, Record] = {row["key"]: row for row in rows}
    num_runs, seeds, num_left_out = number_of_runs(list(once.values()))
    whole, by_task = over_tasks(claim.judge, rows) if rows else (None, {})
    return Judged(
        claim=claim,
        verdict=whole,
        num_runs=num_runs,
        num_left_out=num_left_out,
        num_planned=len(planned & {place.work.key for place in found}),
        seeds=seeds,
        outcome_with_all=_outcome_with_all(claim, rows),
        by_task=by_task,
        bases={place.task: place.work.base for place in found},
    )


def _outcome_with_all(claim: Claim, rows: Sequence[Record]) -> str | None:
    """A run that learned nothing has figures; of one that ended in NaN there is nothing to count."""
    if not any(row["status"] != "ok" and row.get("count") is not None for row in rows):
        return None
    counted = [{**row, "status": "ok"} if row.get("count") is not None else row for row in rows]
    return over_tasks(claim.judge, with_equal_fit(counted))[0].outcome


def committed(folder: Path = COMMITTED, *, scale_name: str | None = None) -> tuple[str, Path] | None:
    """The scale and the table of the results that are part of the package; None where there are none.

    Args:
        folder: Of all results.
        scale_name: Whose; by default those that are shown.

    Raises:
        UsageError: there is no such scale.
    """
    names = SHOWN_SCALES if scale_name is None else (find_scale(scale_name).name,)
    there = [(name, folder / name / FILE) for name in names]
    return next(((name, path) for name, path in reversed(there) if path.is_file()), None)


def judge_committed(
    folder: Path = COMMITTED, *, scale_name: str | None = None
) -> tuple[list[Judged], Path | None]:
    """The verdicts on the results that are part of the package, and their table.

    Args:
        folder: Of all results.
        scale_name: Whose; by default those that are shown.

    Raises:
        UsageError: there is no such scale.
        MalformedInput: the table is damaged.
    """
    found = committed(folder, scale_name=scale_name)
    if found is None:
        return judge(scale_name or SHOWN_SCALES[0], {}), None
    name, path = found
    records, _ = read_results(path)
    return judge(name, records), path


def in_repository(path: Path) -> str:
    """Where a committed table lies, from the root of the repository."""
    return f"src/intruscope/studies/results/{path.parent.name}/{path.name}"


def studies_json(judged: Sequence[Judged], results: str | None) -> dict[str, Any]:
    """The object of the schema ``intruscope.studies/1``.

    Args:
        judged: The claims.
        results: Path of the table in the repository, or of the study's own.
    """
    return {
        "schema": SCHEMA,
        "claims": [
            {
                "id": each.claim.id,
                "text": each.claim.text,
                "paper_version": each.claim.paper_version,
                "recipe": each.claim.recipe,
                "verdict": None if each.verdict is None else each.verdict.outcome,
                "reason": each.reason,
                "results": results if each.verdict is not None else None,
                "num_runs": each.num_runs,
                "seeds": list(each.seeds),
                "heterogeneity": _heterogeneity(each.verdict),
                "by_task": [
                    {
                        "base": each.bases[task],
                        "task": task,
                        "verdict": found.outcome,
                        "figures": [_figure(statement) for statement in found.statements],
                    }
                    for task, found in each.by_task.items()
                ],
            }
            for each in judged
        ],
    }


def _heterogeneity(found: ClaimVerdict | None) -> dict[str, float] | None:
    """The test of the statement whose tasks differ most; p is multiplied by the number of statements."""
    counted = () if found is None else [each for each in found.statements if not each.is_aside]
    tests = [test for each in counted if (test := each.heterogeneity) is not None]
    if not tests:
        return None
    most = min(tests, key=lambda test: test.p)
    return {"q": most.q, "p": min(1.0, most.p * len(tests))}


def _figure(statement: Statement) -> dict[str, Any]:
    found = statement.estimate
    return {
        "text": statement.text,
        "finding": statement.finding,
        "is_aside": statement.is_aside,
        **{
            name: None if found is None else getattr(found, name)
            for name in ("estimate", "low", "high", "level")
        },
    }
