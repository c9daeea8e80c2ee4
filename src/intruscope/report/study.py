"""A study as tables in the terminal, as JSON, and as one page with a table of its runs beside it."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.plots.study import study_pictures
from intruscope.plots.study_draw import picture_figure
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.report.html import write_page
from intruscope.report.study_merging import merged_sets
from intruscope.report.study_page import study_page
from intruscope.studies.folder import study_records
from intruscope.studies.grid import settings_of
from intruscope.studies.judge import Judged, judge, studies_json, study_rows
from intruscope.studies.measure import CONTROLS
from intruscope.studies.recipes import MERGING
from intruscope.studies.records import FILE, write_results
from intruscope.studies.sizes import kinds, sizes
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intruscope.studies.claims import Claim
    from intruscope.studies.recipes import RecipePlace
    from intruscope.studies.scale import Scale

_STYLE = {
    "holds": "green",
    "holds in part": "yellow",
    "mixed": "yellow",
    "does not hold": "red",
    "no effect": "red",
    "undecided": "dim",
    "not testable here": "dim",
}


# --- the terminal ----------------------------------------------------------------------------------------


def claims_table(judged: Sequence[Judged]) -> Table:
    """Every claim with its verdict and its runs."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    table.add_column("")
    table.add_column("claim", ratio=1)
    table.add_column("verdict")
    table.add_column("runs", justify="right")
    table.add_column("seeds", justify="right")
    for each in judged:
        style = "dim" if each.verdict is None else _STYLE[each.verdict.outcome]
        table.add_row(
            each.claim.id,
            each.claim.text,
            Text(each.outcome_text, style=style),
            each.runs_text,
            str(len(each.seeds)),
        )
    return table


def plan_table(planned: Sequence[RecipePlace], scale: Scale) -> Table:
    """The size of a grid, study by study."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left", title=_size_sentence(planned, scale)
    )
    for name in ("study", "arms x tasks x seeds", "runs", "new runs", "core-minutes"):
        table.add_column(name, justify="left" if name == "study" else "right")
    for size in sizes(planned, scale):
        minutes = "?" if size.core_minutes is None else f"{size.core_minutes:,.0f}"
        table.add_row(size.recipe, str(size.num_arms), str(size.num_runs), str(size.num_new), minutes)
    return table


def _size_sentence(planned: Sequence[RecipePlace], scale: Scale) -> str:
    counted = ", ".join(f"{count} {name}" for name, count in kinds(planned).items() if count)
    if not counted:
        return f"{scale.name}: nothing is left to run"
    minutes = [size.core_minutes for size in sizes(planned, scale)]
    if None in minutes:
        return f"{scale.name}: {counted}; running time unknown"
    total = sum(each for each in minutes if each is not None)
    return f"{scale.name}: {counted}; about {total:,.0f} core-minutes ({total / 120:.1f} h on two cores)"


def plan_json(planned: Sequence[RecipePlace], scale: Scale) -> dict[str, Any]:
    """The object of the schema ``intruscope.study.plan/1``: sizes, arms, and every run's settings by key."""
    return {
        "schema": "intruscope.study.plan/1",
        "scale": scale.name,
        "studies": [asdict(size) for size in sizes(planned, scale)],
        "places": [
            {"recipe": p.recipe, "arm": p.arm, "task": p.task, "seed": p.seed, "key": p.work.key}
            for p in planned
        ],
        "runs": {p.work.key: settings_of(p.work) for p in planned},
    }


# --- files -----------------------------------------------------------------------------------------------


def write_study(out: Path, *, first: Sequence[Claim] = ()) -> list[Path]:
    """Write ``report.html``, ``pictures/`` and ``results/`` (table and verdicts) into a study's folder.

    Args:
        out: Folder of the study.
        first: Claims that the page shows before all others.

    Returns:
        What was written.

    Raises:
        UsageError, OutputConflict: there is no study that can be read.
        ResourceExhausted: no room.
    """
    from intruscope.plots.figures import write_figures

    scale_name, records = study_records(out)
    results = out / "results"
    results.mkdir(exist_ok=True)
    about = {"scale": scale_name, "version": version("intruscope")}
    write_results(records, results / FILE, about=about)
    judged = judge(scale_name, records)
    write_json_file(studies_json(judged, f"results/{FILE}"), results / "verdicts.json")
    rows = study_rows(scale_name, records)
    titles = {control: INTERVENTIONS[control].title for control in CONTROLS}
    pictures = study_pictures(rows, titles, merged_sets(rows.get(MERGING, [])))
    write_figures(lambda: ((each.name, picture_figure(each)) for each in pictures), out / "pictures")
    ordered = sorted(judged, key=lambda each: (each.claim not in first, each.verdict is None))
    write_page(study_page(scale_name, records, ordered, rows, pictures), out / "report.html")
    return [out / "report.html", out / "pictures", results]
