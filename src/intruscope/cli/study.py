"""``intruscope study``: the paper's claims, their runs, and the verdicts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.cli.checks import require_lab
from intruscope.cli.command import Verbs, command
from intruscope.cli.groups import DRY_RUN, JSON, QUIET
from intruscope.cli.outputs import write_record
from intruscope.cli.screen import note, progress_bars, show
from intruscope.errors import UsageError
from intruscope.options import REQUIRED, option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.studies.claims import Claim
    from intruscope.studies.records import Record
    from intruscope.studies.scale import Scale

ALL = "all"
CLAIMS: tuple[str, ...] = option(
    REQUIRED,
    help="Claims to run: C1 to C24, M1 to M3 (--scale merging), or 'all' of the scale.",
    panel="Input",
    positional=True,
)
SCALE: str = option(
    "mini",
    help="Size of the study: smoke (minutes), mini (hours), midi (hours on a GPU), paper (many GPUs), or "
    "merging (an hour; M1 to M3).",
    metavar="SCALE",
)
SHIPPED_SCALE: str | None = option(
    None,
    help="Which results that ship with the package: mini (default), midi or merging.",
    flag="scale",
    panel="Input",
    metavar="SCALE",
)
SEEDS: tuple[int, ...] | None = option(
    None,
    help="Seeds to run instead of the scale's, separated by commas.",
    comma=True,
    minimum=0,
    metavar="N,N,...",
)
STUDY: Path = option(REQUIRED, help="Folder of the study.", panel="Input", metavar="FOLDER")
OWN_STUDY: Path | None = option(
    None,
    help="Folder of your own study, instead of the results that ship with the package.",
    panel="Input",
    metavar="FOLDER",
)


def list_claims(
    scale: str | None = SHIPPED_SCALE, out: Path | None = OWN_STUDY, json: str | None = JSON
) -> None:
    """Show every claim of the paper with its verdict."""
    from intruscope.report.study import claims_table
    from intruscope.studies.judge import in_repository, judge, judge_committed, studies_json

    _check_one_source(scale, out)
    if out is None:
        judged, path = judge_committed(scale_name=scale)
        results = in_repository(path) if path is not None else None
    else:
        from intruscope.studies.folder import study_records

        scale_name, records = study_records(out)
        judged, results = judge(scale_name, records), str(out)
    write_record(studies_json(judged, results), json)
    if json != "-":
        show([claims_table(judged)], width=110)


def plan(
    claims: tuple[str, ...] = CLAIMS,
    scale: str = SCALE,
    seeds: tuple[int, ...] | None = SEEDS,
    json: str | None = JSON,
) -> None:
    """Show what a study would run, without running it."""
    _plan(_claims(claims, scale), scale, seeds, json)


def run(
    claims: tuple[str, ...] = CLAIMS,
    out: Path = option(
        REQUIRED,
        help="Folder of the study. Running the same command again resumes it.",
        panel="Output",
        metavar="FOLDER",
    ),
    scale: str = SCALE,
    seeds: tuple[int, ...] | None = SEEDS,
    data: Path | None = option(
        None, help="Folder with models/, tasks/ and text/.", panel="Input", metavar="FOLDER"
    ),
    known: tuple[str, ...] = option(
        (),
        help="Reuse finished runs from here: a runs.parquet, the folder of another study, or 'shipped' for "
        "the results that ship with the package.",
        panel="Input",
        metavar="PATH",
    ),
    jobs: int | None = option(
        None,
        help="Number of parallel processes, one thread each (default: 1, or all that the Ray cluster has).",
        panel="How it runs",
        minimum=1,
    ),
    ray: str | None = option(
        None,
        help="Run on this Ray cluster, whose machines must share --out and --data: HOST:PORT, or 'auto' for "
        "RAY_ADDRESS or a local cluster. Needs the 'ray' extra.",
        panel="How it runs",
        metavar="ADDRESS",
    ),
    keep_models: bool = option(False, help="Keep every tuned model.", panel="Output"),
    dry_run: bool = DRY_RUN,
    quiet: bool = QUIET,
) -> None:
    """Run the experiments that the claims need, and show the verdicts.

    Experiments that the folder already has are not repeated, and claims share them. Needs the 'lab' extra.
    """
    chosen = _claims(claims, scale)
    recipes = list(dict.fromkeys(claim.recipe for claim in chosen))
    if dry_run:
        _plan(chosen, scale, seeds, None, out=out, known=known)
        return
    from intruscope.studies.scales import find_scale

    found = find_scale(scale)
    require_lab()
    from intruscope.demo.unpack import unpack
    from intruscope.report.study import claims_table
    from intruscope.studies.judge import judge
    from intruscope.studies.known import refusal_lines
    from intruscope.studies.origins import origin_lines
    from intruscope.studies.pool import check_complete, run_study

    if not quiet:
        _warn_of_few_seeds(chosen, found, seeds, out)
        _note_growing(found, out)
    with progress_bars(quiet=quiet) as on_progress:
        report = run_study(
            found,
            out,
            recipes=recipes,
            seeds=list(seeds) if seeds else None,
            data=data,
            known=known,
            jobs=jobs,
            ray=ray,
            keep_models=keep_models,
            unpack=partial(unpack, on_progress=on_progress),
            on_progress=on_progress,
        )
    if not quiet:
        judged = [each for each in judge(scale, report.records) if each.claim.recipe in recipes]
        show([claims_table(judged)], width=110)
        for line in (*refusal_lines(report.refused), *origin_lines(report.records.values())):
            note(line)
        taken = f", {report.num_taken} taken from what is known" if known else ""
        found_runs = f"{len(report.records)} runs, {report.num_new} of them new{taken}"
        note(f"{found_runs}; for a page: intruscope study report {' '.join(claims)} --out {out}")
    check_complete(report)


def report(
    claims: tuple[str, ...] = option((), help="Claims to show first.", panel="Input", positional=True),
    out: Path = STUDY,
    quiet: bool = QUIET,
) -> None:
    """Write a page with every claim's figures next to the paper's, plots, and a table of all runs."""
    from intruscope.report.study import write_study

    paths = write_study(out, first=_claims(claims))
    if not quiet:
        show([f"written: {path}" for path in paths])


def query(
    sql: str = option(
        REQUIRED,
        help="A SELECT over the tables runs, counts, looks, interventions, arms, verdicts and statements.",
        panel="Input",
        positional=True,
    ),
    scale: str | None = SHIPPED_SCALE,
    out: Path | None = OWN_STUDY,
    json: str | None = JSON,
) -> None:
    """Query the results of a study in SQL, also while it is running. Queries are read-only.

    "DESCRIBE runs" shows the columns of a table. Needs the 'lab' extra.
    """
    from intruscope.adapters.live_models import require

    require("duckdb")
    from intruscope.report.study_query import answer_table
    from intruscope.studies.query import query as ask
    from intruscope.studies.query import query_json

    _check_one_source(scale, out)
    scale_name, records = _records(out, scale)
    answer = ask(sql, scale_name, records)
    write_record(query_json(sql, answer), json)
    if json != "-":
        show([answer_table(answer)], width=140)


def _warn_of_few_seeds(
    claims: Sequence[Claim], scale: Scale, seeds: Sequence[int] | None, out: Path | None = None
) -> None:
    """Before hours are spent: which claims cannot be decided by the runs of these seeds."""
    from intruscope.studies.folder import is_study, study_records
    from intruscope.studies.inputs import check_seeds
    from intruscope.studies.judge import FEWEST_SEEDS, places_with, too_few_seeds
    from intruscope.studies.recipes import places

    if seeds is not None:
        check_seeds(seeds)
    found = places(scale, [claim.recipe for claim in claims], of_seeds=seeds)
    if out is not None and is_study(out):
        records = study_records(out)[1]
        found += [place for place in places_with(scale.name, records) if place.work.key in records]
    few = too_few_seeds(claims, found)
    if few:
        names = ", ".join(claim.id for claim in few)
        note(
            f"{names} will stay undecided: verdicts need at least {FEWEST_SEEDS} seeds per task; "
            "add some, for example --seeds 0,1,2"
        )


def _note_growing(scale: Scale, out: Path) -> None:
    import torch

    from intruscope.studies.scale import GROWN

    growing = [b.name for b in scale.bases if b.source == GROWN and not (out / "inputs" / b.name).exists()]
    if growing and not torch.cuda.is_available():
        names = ", ".join(growing)
        note(f"{names} is trained first, in one go: half a minute on a GPU, and much longer here")


def _check_one_source(scale: str | None, out: Path | None) -> None:
    """A study's folder has its scale."""
    if scale is not None and out is not None:
        raise UsageError(
            "--scale and --out exclude each other: the folder of a study has its own scale",
            remedy="leave --scale out",
        )


def _records(out: Path | None, scale_name: str | None) -> tuple[str, dict[str, Record]]:
    """Of a study's folder, or those that ship."""
    if out is not None:
        from intruscope.studies.folder import study_records

        return study_records(out)
    from intruscope.studies.judge import committed
    from intruscope.studies.records import read_results

    found = committed(scale_name=scale_name)
    if found is None:
        of_scale = "" if scale_name is None else f" at the scale {scale_name}"
        raise UsageError(
            f"no results{of_scale} ship with this version",
            remedy="give the folder of your own study with --out",
        )
    return found[0], read_results(found[1])[0]


def _plan(
    claims: Sequence[Claim],
    scale: str,
    seeds: Sequence[int] | None,
    json: str | None,
    *,
    out: Path | None = None,
    known: Sequence[str] = (),
) -> None:
    from intruscope.report.study import plan_json, plan_table
    from intruscope.studies.folder import is_study, study_records
    from intruscope.studies.known import read_known
    from intruscope.studies.recipes import places
    from intruscope.studies.scales import find_scale

    found: Scale = find_scale(scale)
    chosen = list(seeds) if seeds else None
    _warn_of_few_seeds(claims, found, chosen)
    every = places(found, [claim.recipe for claim in claims], of_seeds=chosen)
    there = {key for name in known for key in read_known(name, found).records}
    if out is not None and is_study(out):
        there |= study_records(out)[1].keys()
    planned = [place for place in every if place.work.key not in there]
    num_there = len({place.work.key for place in every} & there)
    write_record(plan_json(planned, found), json)
    if json != "-":
        show([plan_table(planned, found)], width=110)
    if num_there:
        note(f"{num_there} runs are there already; known ones are taken if they read the same inputs")


def _claims(names: Sequence[str], scale: str | None = None) -> Sequence[Claim]:
    """The claims by their names; each must be one of the scale's, where there is one.

    Raises:
        UsageError: there is no such claim or scale, or the scale has no runs for a claim.
    """
    from intruscope.studies.claims import CLAIMS, claims_of, find_claim
    from intruscope.studies.scales import find_scale

    own = CLAIMS if scale is None else claims_of(find_scale(scale).name)
    if any(name.lower() == ALL for name in names):
        return own
    found = [find_claim(name) for name in names]
    foreign = [claim.id for claim in found if scale is not None and claim not in own]
    if foreign:
        raise UsageError(
            f"the scale {scale} has no runs for {', '.join(foreign)}",
            remedy="run M1 to M3 with --scale merging, and C1 to C24 with another scale",
        )
    return found


_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "list": (list_claims, "Show every claim of the paper with its verdict."),
    "plan": (plan, "Show what a study would run."),
    "run": (run, "Run the experiments of a study."),
    "report": (report, "Write a page with figures, plots and a table of all runs."),
    "query": (query, "Query results in SQL."),
}
study = Verbs(
    "study",
    {"Commands": {name: summary for name, (_, summary) in _COMMANDS.items()}},
    lambda name: command(_COMMANDS[name][0], name=name),
    help="Re-run the paper's experiments. Each claim gets a verdict, which may contradict the paper.",
)
