"""``intruscope study``: the paper's claims, their runs, and the verdicts."""

from __future__ import annotations

from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated

import typer

from intruscope.cli.options import Quiet, Verbose  # noqa: TC001 - typer reads annotations when it runs
from intruscope.cli.outputs import write_record
from intruscope.cli.screen import note, show, stage_progress
from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.engine.tasks import Progress
    from intruscope.studies.claims import Claim
    from intruscope.studies.records import Record
    from intruscope.studies.scales import Scale

study = typer.Typer(
    name="study",
    help="Re-run the paper: its claims, their runs, and verdicts that may go against it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Claims = Annotated[list[str], typer.Argument(help="Claims (C1 to C24), or 'all'.")]
ScaleName = Annotated[
    str, typer.Option("--scale", help="smoke (minutes), mini (hours), midi (a GPU), or paper (GPUs).")
]
ShippedScale = Annotated[
    str | None, typer.Option("--scale", help="Which of the package's results: mini (default), or midi.")
]
Seeds = Annotated[str | None, typer.Option(help="Instead of the scale's: A,B,C.")]
ALL = "all"


@study.command("list")
def list_claims(
    scale: ShippedScale = None,
    json: Annotated[str | None, typer.Option(help="Write the list as JSON; - for stdout.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of a study of your own, instead of the package's results.")
    ] = None,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Show every claim of the paper with its verdict."""
    from intruscope.report.study import claims_table
    from intruscope.studies.judge import in_repository, judge, judge_committed, studies_json

    _check_one_source(scale, out)
    if out is None:
        judged, path = judge_committed(scale_name=scale)
        results = in_repository(path) if path is not None else None
    else:
        from intruscope.studies.pool import study_records

        scale_name, records = study_records(out)
        judged, results = judge(scale_name, records), str(out)
    write_record(studies_json(judged, results), json)
    if json != "-":
        show([claims_table(judged)], width=110)


@study.command()
def plan(
    claims: Claims,
    scale: ScaleName = "mini",
    seeds: Seeds = None,
    json: Annotated[str | None, typer.Option(help="Write every run as JSON; - for stdout.")] = None,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Show how large a study is; nothing is read and nothing run."""
    _plan(_claims(claims), scale, _seeds(seeds), json)


@study.command()
def run(
    claims: Claims,
    out: Annotated[Path, typer.Option(help="Folder of the study; the same again goes on where it stopped.")],
    scale: ScaleName = "mini",
    data: Annotated[Path | None, typer.Option(help="Folder that holds models/, tasks/ and text/.")] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(
            help="Do not run again what is finished there: a runs.parquet, a study's folder, or 'shipped' "
            "for the results of this package. May be given several times."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes at once, of one thread each; 1, or with --ray as many as it has."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run on the machines of this Ray cluster, which share --out and --data: HOST:PORT, or "
            "'auto' for that of RAY_ADDRESS or of this machine. Needs the 'ray' extra."
        ),
    ] = None,
    seeds: Seeds = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep every tuned model.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan only.")] = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Run what the claims need and the folder does not have yet, and say what came of them.

    Needs the 'lab' extra. Runs serve all claims: what one has run, another does not run again.
    """
    recipes, chosen = _recipes(claims), _seeds(seeds)
    if dry_run:
        _plan(_claims(claims), scale, chosen, None)
        return
    from intruscope.adapters.live_models import require
    from intruscope.studies.scales import find_scale

    found = find_scale(scale)
    for package in ("transformers", "peft", "accelerate"):
        require(package)
    from intruscope.demo.unpack import unpack
    from intruscope.report.study import claims_table
    from intruscope.studies.judge import judge
    from intruscope.studies.known import refusal_lines
    from intruscope.studies.origins import origin_lines
    from intruscope.studies.pool import check_complete, run_study

    if not quiet:
        _warn_of_few_seeds(_claims(claims), found, chosen, out)
        _note_growing(found, out)
    with stage_progress(quiet=quiet) as bar:

        def show_progress(event: Progress) -> None:
            bar("runs", event.num_done, event.num_tasks)

        report = run_study(
            found,
            out,
            recipes=recipes,
            seeds=chosen,
            data=data,
            known=known or (),
            jobs=jobs,
            ray=ray,
            keep_models=keep_models,
            unpack=partial(unpack, on_step=lambda done, all_: bar("base", done, all_)),
            on_progress=show_progress,
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


@study.command()
def report(
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    claims: Annotated[list[str] | None, typer.Argument(help="Claims to show first (C1 to C24).")] = None,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Write one page with every claim's figures beside the paper's, pictures, and a table of all runs."""
    from intruscope.report.study import write_study

    paths = write_study(out, first=_claims(claims or ()))
    if not quiet:
        show([f"in {path}" for path in paths])


@study.command()
def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="One SELECT over runs, counts, looks, interventions, arms, verdicts and statements."
        ),
    ],
    scale: ShippedScale = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of a study of your own, instead of the package's results.")
    ] = None,
    json: Annotated[str | None, typer.Option(help="Write the answer as JSON; - for stdout.")] = None,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Ask a study a question in SQL; also while it is running. Nothing can be changed by it.

    Needs the 'lab' extra. "DESCRIBE runs" shows the columns of a table.
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
    from intruscope.studies.inputs import check_seeds
    from intruscope.studies.judge import places_with, too_few_seeds
    from intruscope.studies.pool import is_study, study_records
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
            f"{names} will stay undecided: verdicts need at least {few[0].min_seeds} seeds per task; "
            "add some, for example --seeds 0,1,2"
        )


def _note_growing(scale: Scale, out: Path) -> None:
    import torch

    from intruscope.studies.scales import GROWN

    growing = [b.name for b in scale.bases if b.source == GROWN and not (out / "inputs" / b.name).exists()]
    if growing and not torch.cuda.is_available():
        names = ", ".join(growing)
        note(f"{names} is trained first, in one go: half a minute on a GPU, and much longer here")


def _check_one_source(scale: str | None, out: Path | None) -> None:
    """A study's folder has its scale."""
    if scale is not None and out is not None:
        raise UsageError(
            "got --scale and --out, expected one of them: a study's folder knows its scale",
            remedy="leave --scale out",
        )


def _records(out: Path | None, scale_name: str | None) -> tuple[str, dict[str, Record]]:
    """Of a study's folder, or those that ship."""
    if out is not None:
        from intruscope.studies.pool import study_records

        return study_records(out)
    from intruscope.studies.judge import committed
    from intruscope.studies.records import read_results

    found = committed(scale_name=scale_name)
    if found is None:
        of_scale = "" if scale_name is None else f" of the scale {scale_name}"
        raise UsageError(
            f"got no --out, and no results{of_scale} ship with this version, expected a study to ask",
            remedy="name the folder of one with --out",
        )
    return found[0], read_results(found[1])[0]


def _plan(claims: Sequence[Claim], scale: str, seeds: list[int] | None, json: str | None) -> None:
    from intruscope.report.study import plan_json, plan_table
    from intruscope.studies.recipes import places
    from intruscope.studies.scales import find_scale

    found: Scale = find_scale(scale)
    _warn_of_few_seeds(claims, found, seeds)
    planned = places(found, [claim.recipe for claim in claims], of_seeds=seeds)
    write_record(plan_json(planned, found), json)
    if json != "-":
        show([plan_table(planned, found)], width=110)


def _claims(names: Sequence[str]) -> Sequence[Claim]:
    from intruscope.studies.claims import CLAIMS, find_claim

    if any(name.lower() == ALL for name in names):
        return CLAIMS
    return [find_claim(name) for name in names]


def _recipes(claims: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(claim.recipe for claim in _claims(claims)))


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        fact = f"--seeds is {text!r}, expected numbers with commas between"
        raise UsageError(fact, remedy="write for example --seeds 0,1,2")
    return [int(part) for part in parts]
