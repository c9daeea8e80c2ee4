"""The page of a study: every claim with the paper's figures, ours, intervals, controls and the verdict.

Stands on the style and the policy of the scan's page (see :mod:`intruscope.report.html`).
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from intruscope.plots.study_picture import number
from intruscope.report.html import render_page
from intruscope.report.study_charts import pictures_data
from intruscope.report.study_merging import merge_tables
from intruscope.report.study_strips import strip
from intruscope.report.study_tables import COLUMNS, arm_tables, edit_table
from intruscope.report.words import printable_text
from intruscope.studies.lives import without_unfit
from intruscope.studies.measure import STRENGTHS
from intruscope.studies.origins import origin_lines
from intruscope.studies.paper_numbers import REPORTED
from intruscope.studies.recipes import MERGING
from intruscope.studies.scales import find_scale
from intruscope.studies.verdicts import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.plots.study_picture import Picture
    from intruscope.studies.judge import Judged
    from intruscope.studies.records import Record
    from intruscope.studies.verdicts import Statement


_HEADINGS = {"merging": ("Merging several adapters", "Claims of this project")}
_OF_THE_PAPER = ("The paper's claims, tested again", "arXiv 2410.21228")
"""Title of a scale's page, and whose claims it tests."""


def study_page(
    scale_name: str,
    records: Mapping[str, Record],
    judged: Sequence[Judged],
    rows: Mapping[str, Sequence[Record]],
    pictures: Sequence[Picture],
) -> str:
    """The page of a study.

    Args:
        scale_name: Its scale.
        records: All, by key.
        judged: Every claim.
        rows: By recipe.
        pictures: What its script draws.
    """
    scale = find_scale(scale_name)
    records = without_unfit(records)
    return render_page(
        "study.html.j2",
        styles=("page.css", "sweep.css", "study.css"),
        scripts=("dom.js", "frame.js", "study_charts.js", "study.js"),
        data={"pictures": pictures_data(pictures)},
        title=_HEADINGS.get(scale_name, _OF_THE_PAPER)[0],
        subtitle=_subtitle(scale_name, records),
        claims=[_claim(each, pictures) for each in judged],
        outcomes=[
            (name, sum(each.verdict is not None and each.verdict.outcome == name for each in judged))
            for name in OUTCOMES
        ]
        + [("not run", sum(each.verdict is None for each in judged))],
        arms=arm_tables(rows),
        merges=merge_tables(rows.get(MERGING, [])),
        arm_figures=[column.title for column in COLUMNS],
        edits=edit_table(rows.get("interventions", [])),
        strengths=[f"{strength:g}" for strength in STRENGTHS],
        pictures=[_caption(picture) for picture in pictures],
        left_out=[
            (_run_text(record["settings"]), printable_text(str(record.get("reason"))))
            for record in records.values()
            if record["status"] != "ok"
        ],
        origins=origin_lines(records.values()),
        rates=[(base.name, base.rates.source) for base in scale.bases],
        version=version("intruscope"),
    )


def _subtitle(scale_name: str, records: Mapping[str, Record]) -> str:
    hours = sum(record.get("core_seconds", 0.0) for record in records.values()) / 3600.0
    left_out = sum(record["status"] != "ok" for record in records.values())
    claims = _HEADINGS.get(scale_name, _OF_THE_PAPER)[1]
    return (
        f"{claims} at the scale {scale_name}: {len(records)} runs, {hours:.1f} core-hours, "
        f"{left_out} left out by the rules"
    )


def _claim(each: Judged, pictures: Sequence[Picture]) -> dict[str, Any]:
    statements = [] if each.verdict is None else each.verdict.statements
    levels = {f"{100 * s.estimate.level:.3g}%" for s in statements if s.estimate is not None}
    return {
        "id": each.claim.id,
        "text": each.claim.text,
        "where": each.claim.paper_version,
        "recipe": each.claim.recipe,
        "outcome": each.outcome_text,
        "style": "none" if each.verdict is None else each.verdict.outcome.replace(" ", "-"),
        "runs": each.num_runs,
        "planned": None if each.is_whole else each.num_planned,
        "left_out": each.num_left_out,
        "with_all": each.with_all_text,
        "seeds": len(each.seeds),
        "level": " and ".join(sorted(levels)),
        "paper": REPORTED.get(each.claim.id),
        "statements": [_statement(statement) for statement in statements],
        "alone": [
            (printable_text(task), found.outcome, found.outcome.replace(" ", "-"))
            for task, found in each.by_task.items()
        ],
        "pictures": [
            (picture.name, printable_text(picture.title))
            for picture in pictures
            if each.claim.id in picture.about.claims
        ],
    }


def _statement(statement: Statement) -> dict[str, Any]:
    found = statement.estimate
    scale = statement.unit.scale
    figures: dict[str, Any] = {"figure": None, "strip": None}
    if found is not None:
        unit = statement.unit.suffix
        figures = {
            "figure": f"{number(scale * found.estimate)}{unit}",
            "between": f"{number(scale * found.low)} to {number(scale * found.high)}",
            "size": found.size_text,
            "seen": f"{number(scale * found.detectable)}{unit}",
            "strip": strip(
                scale * found.estimate,
                (scale * found.low, scale * found.high),
                (scale * statement.above, scale * statement.below),
            ),
        }
    return {
        **figures,
        "text": statement.text,
        "finding": statement.finding,
        "style": statement.finding.replace(" ", "-"),
        "claimed": _claimed(statement),
        "aside": statement.is_aside,
        "missing": statement.why_missing,
    }


def _claimed(statement: Statement) -> str:
    scale, unit = statement.unit.scale, statement.unit.suffix
    low, high = scale * statement.above, scale * statement.below
    if math.isinf(low):
        return f"below {number(high)}{unit}"
    return f"above {number(low)}{unit}" if math.isinf(high) else f"{number(low)} to {number(high)}{unit}"


def _caption(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name,
        "title": printable_text(picture.title),
        "figure": picture.about.figure,
        "shows": picture.about.shows,
        "differs": picture.about.differs,
        "note": printable_text(picture.note),
        "claims": picture.about.claims,
    }


def _run_text(settings: Mapping[str, Any]) -> str:
    options = "".join(f" {name} {value:g}" for name, value in settings.get("options", {}).items())
    what = settings.get("method", settings.get("tuned"))
    task = settings.get("task", "chain" if settings.get("kind") == "chain" else "set of adapters")
    return printable_text(
        f"{settings['base']}, {task}: {what}{options}, rate {settings.get('rate')}, "
        f"seed {settings.get('seed')}"
    )
