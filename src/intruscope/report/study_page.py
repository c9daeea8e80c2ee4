"""The page of a study: every claim's figures beside the paper's, with intervals, controls and the verdict.

Stands on the style and the policy of the scan's page (see :mod:`intruscope.report.html`).
"""

from __future__ import annotations

import base64
import math
import statistics
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from intruscope.report.html import render_page
from intruscope.report.study_strips import strip
from intruscope.report.words import printable_text
from intruscope.studies.measure import CONTROLS, STRENGTHS
from intruscope.studies.origins import told_origins
from intruscope.studies.paper_numbers import REPORTED
from intruscope.studies.scales import find_scale
from intruscope.studies.verdicts import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from intruscope.studies.judge import Judged
    from intruscope.studies.records import Record
    from intruscope.studies.verdicts import Statement

_ARM_FIGURES = (
    ("count", "intruders", 1),
    ("null_count", "by chance", 1),
    ("hosts", "matrices with one", 1),
    ("predicted_hosts", "predicted", 1),
    ("effective_rank", "effective rank", 1),
    ("update_norm", "norm of the update", 2),
    ("forgetting", "forgetting", 3),
    ("accuracy", "accuracy", 3),
    ("held_out_loss", "held-out loss", 3),
)
_CAPTIONS = {
    "epsilon": "Share of the ten leading vectors that intrude, by threshold: mean and range over tasks and "
    "seeds (the paper's figure 4).",
    "scatter": "Forgetting over the count, a mark for each run (version 3, figure 8).",
    "lives": "While training goes on: intruders above, forgetting below; a line for each seed.",
}
_TABLE_RECIPES = ("counts", "rates", "alpha", "methods", "data_size")


def study_page(
    scale_name: str,
    records: Mapping[str, Record],
    judged: Sequence[Judged],
    rows: Mapping[str, Sequence[Record]],
    pictures: Sequence[Path],
) -> str:
    """The page of a study.

    Args:
        scale_name: Its scale.
        records: All, by key.
        judged: Every claim.
        rows: By recipe.
        pictures: PNG files, which the page carries.
    """
    scale = find_scale(scale_name)
    return render_page(
        "study.html.j2",
        styles=("page.css", "study.css"),
        scripts=(),
        data={},
        has_images=True,
        title="The paper's claims, run again",
        subtitle=_subtitle(scale_name, records),
        claims=[_claim(each) for each in judged],
        outcomes=[
            (name, sum(each.verdict is not None and each.verdict.outcome == name for each in judged))
            for name in OUTCOMES
        ]
        + [("not run", sum(each.verdict is None for each in judged))],
        arms=_arm_tables(rows),
        arm_figures=[title for _, title, _ in _ARM_FIGURES],
        edits=_edits(rows.get("interventions", [])),
        strengths=[f"{strength:g}" for strength in STRENGTHS],
        pictures=[(_CAPTIONS[path.stem], _data_uri(path)) for path in pictures],
        left_out=[
            (_told(record["settings"]), printable_text(str(record.get("reason"))))
            for record in records.values()
            if record["status"] != "ok"
        ],
        origins=told_origins(records.values()),
        rates=[(base.name, base.rates.source) for base in scale.bases],
        version=version("intruscope"),
    )


def _subtitle(scale_name: str, records: Mapping[str, Record]) -> str:
    hours = sum(record.get("core_seconds", 0.0) for record in records.values()) / 3600.0
    diverged = sum(record["status"] != "ok" for record in records.values())
    return (
        f"arXiv 2410.21228 at the scale {scale_name}: {len(records)} runs, {hours:.1f} core-hours, "
        f"{diverged} left out by the rule"
    )


def _claim(each: Judged) -> dict[str, Any]:
    statements = [] if each.verdict is None else each.verdict.statements
    levels = {f"{100 * s.estimate.level:.3g}%" for s in statements if s.estimate is not None}
    return {
        "id": each.claim.id,
        "text": each.claim.text,
        "where": each.claim.paper_version,
        "recipe": each.claim.recipe,
        "outcome": "not run" if each.verdict is None else each.verdict.outcome,
        "style": "none" if each.verdict is None else each.verdict.outcome.replace(" ", "-"),
        "runs": each.num_runs,
        "diverged": each.num_diverged,
        "seeds": len(each.seeds),
        "level": " and ".join(sorted(levels)) or "no level",
        "paper": REPORTED[each.claim.id],
        "statements": [_statement(statement) for statement in statements],
    }


def _statement(statement: Statement) -> dict[str, Any]:
    found = statement.estimate
    scale = statement.unit.scale
    figures: dict[str, Any] = {"figure": None, "strip": None}
    if found is not None:
        unit = f" {statement.unit.name}" if statement.unit.name else ""
        figures = {
            "figure": f"{_short(scale * found.estimate)}{unit}",
            "between": f"{_short(scale * found.low)} to {_short(scale * found.high)}",
            "seen": f"{_short(scale * found.detectable)}{unit}",
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
        "missing": statement.missing or "no runs",
    }


def _claimed(statement: Statement) -> str:
    scale = statement.unit.scale
    low, high = scale * statement.above, scale * statement.below
    if math.isinf(low):
        return f"below {_short(high)}"
    return f"above {_short(low)}" if math.isinf(high) else f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _arm_tables(rows: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """For each task every arm's figures, a line for each run that counts once."""
    lines: dict[str, dict[str, list[Record]]] = {}
    for recipe in _TABLE_RECIPES:
        for row in rows.get(recipe, []):
            if row["status"] == "ok":
                name = f"{(row['settings']['kind'] == 'checkpoint' and 'published ') or ''}{_told_arm(row)}"
                group = lines.setdefault(row["task"], {}).setdefault(name, [])
                if all(other["key"] != row["key"] for other in group):
                    group.append(row)
    return [
        {
            "task": printable_text(task),
            "lines": [
                (printable_text(name), len(group), _means(group)) for name, group in sorted(arms.items())
            ],
        }
        for task, arms in lines.items()
    ]


def _told_arm(row: Record) -> str:
    settings = row["settings"]
    if settings["kind"] == "checkpoint":
        return str(settings["arm"])
    options = settings["options"]
    told = "".join(f" {name} {options[name]:g}" for name in ("rank", "alpha") if name in options)
    return f"{settings['method']}{told}, rate {settings['rate']:g}, {settings['examples']:,} examples"


def _means(group: Sequence[Record]) -> list[str]:
    """Mean and range over runs of each figure."""
    cells = []
    for name, _, digits in _ARM_FIGURES:
        values = [row[name] for row in group if row.get(name) is not None]
        if not values:
            cells.append("–")
            continue
        mean, low, high = (f"{x:.{digits}f}" for x in (statistics.fmean(values), min(values), max(values)))
        cells.append((mean if low == high else f"{mean} ({low}–{high})").replace("-", "−"))
    return cells


def _edits(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Change of accuracy and of forgetting by control and strength, as the paper's table 3."""
    found = []
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in rows):
        own = [
            row["interventions"]
            for row in rows
            if row["status"] == "ok" and (row["task"], row["arm"]) == (task, arm)
        ]
        for control in CONTROLS:
            cells = [_edit_cell(own, control, f"{strength:g}") for strength in STRENGTHS]
            found.append({"task": printable_text(task), "arm": arm, "control": control, "cells": cells})
    return found


def _edit_cell(runs: Sequence[Mapping[str, Any]], control: str, strength: str) -> str:
    told = []
    for name in ("accuracy_change", "forgetting_share"):
        values = [
            run[control][strength][name] for run in runs if name in run.get(control, {}).get(strength, {})
        ]
        told.append(f"{100 * statistics.fmean(values):+.1f}".replace("-", "−") if values else "–")
    return " / ".join(told)


def _told(settings: Mapping[str, Any]) -> str:
    options = "".join(f" {name} {value:g}" for name, value in settings.get("options", {}).items())
    what = settings.get("method", settings.get("tuned"))
    return printable_text(
        f"{settings['base']}, {settings.get('task', 'chain')}: {what}{options}, rate {settings.get('rate')}, "
        f"seed {settings.get('seed')}"
    )


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
