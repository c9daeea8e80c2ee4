"""The page of a sweep: the trade-off between task and forgetting, with the edit beside every control.

It uses the frame, the style and the policy of the scan's page (see :mod:`intruscope.report.html`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intruscope.fitting.table import FIXES
from intruscope.report.html import render_page, write_page
from intruscope.report.words import printable_text
from intruscope.sweep.words import direction_sentence, nats, score_text, series_name

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.forgetting.intervals import Interval
    from intruscope.sweep.records import (
        ChosenStrength,
        Fitting,
        Recommendation,
        SweepCellReport,
        SweepReport,
    )

_OUTCOMES = {
    "recommended": "recommended",
    "nothing-to-edit": "no intruders",
    "no-forgetting": "no measurable forgetting",
    "no-gain": "no strength is worth it",
    "not-confirmed": "no strength is worth it",
}
_VERDICTS = {
    "special": "special, beyond their size",
    "not-special": "not special here",
    "worse": "not special; a mere shrink does better",
}


def write_sweep_html(report: SweepReport, path: Path) -> None:
    """Write one page that works from ``file://`` and sends nothing anywhere.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
        ValueError: a record holds NaN or an infinity, which records forbid.
    """
    page = render_page(
        "sweep.html.j2",
        styles=("page.css", "sweep.css"),
        scripts=("dom.js", "frame.js", "sweep_charts.js", "sweep.js"),
        data=sweep_data(report),
        title="What a repair wins back and costs, beside a mere shrink",
        subtitle=printable_text(report.tuned),
        confidence=f"{100 * report.settings.confidence:g}%",
        controls=[(FIXES[name].title, FIXES[name].explanation) for name in report.settings.controls],
    )
    write_page(page, path)


def sweep_data(report: SweepReport) -> dict[str, Any]:
    """Everything the page draws, as plain data; names from files are escaped here.

    Args:
        report: The sweep.
    """
    is_several = len(report.settings.which) > 1
    by_series: dict[tuple[str, str | None], list[SweepCellReport]] = {}
    for each in report.cells:
        by_series.setdefault((each.cell.control, each.cell.which), []).append(each)
    return {
        "metric": report.metric,
        "forgetting": _three(report.forgetting),
        "advice": [
            {
                "sentence": each.sentence,
                "commands": [
                    [lead, printable_text(command)]
                    for lead, command in (
                        ("To write this model:", each.command),
                        ("To shrink the whole update instead:", each.shrink_command),
                    )
                    if command is not None
                ],
                "outcome": "helps" if _is_outdone(each) else _OUTCOMES[each.outcome],
                "isRecommended": each.outcome == "recommended" and not _is_outdone(each),
                "isOutdone": _is_outdone(each),
                "which": each.which,
                "strength": each.strength,
                "figures": None if each.report is None else _cell(each.report),
                "verdict": None if each.intruders is None else _VERDICTS[each.intruders],
            }
            for each in report.recommendations
        ],
        "facts": _facts(report),
        "parts": _parts(report),
        "series": [
            {
                "name": printable_text(series_name(control, which, is_several=is_several)),
                "control": control,
                "which": which,
                "isFit": FIXES[control].role == "fit",
                "isMatched": FIXES[control].role == "matched",
                "isShown": FIXES[control].role != "other",
                "cells": [_cell(each) for each in cells],
            }
            for (control, which), cells in by_series.items()
        ],
        "choices": [
            {
                "name": printable_text(series_name(each.control, each.which, is_several=is_several)),
                "setting": _setting(each),
                "figures": None if each.report is None else _cell(each.report),
            }
            for each in report.choices
        ],
        "fitting": None if report.fitting is None else _fitting(report.fitting),
        "maxCost": report.settings.max_task_cost,
        "settings": [[name, _setting_text(value)] for name, value in asdict(report.settings).items()],
        "environment": [
            [printable_text(str(name)), printable_text(str(value))]
            for name, value in report.environment.items()
        ],
    }


def _is_outdone(recommendation: Recommendation) -> bool:
    """Whether the edit is worth it by itself, but a mere shrink does better."""
    return recommendation.outcome == "recommended" and recommendation.intruders == "worse"


def _setting(choice: ChosenStrength) -> str:
    if choice.weight is not None:
        return f"weight {choice.weight:g}"
    return "none" if choice.strength is None else f"{choice.strength:g}"


def _fitting(fitting: Fitting) -> dict[str, Any]:
    """The best fix, what the fits took, and the directions of each fit that has them."""
    best = fitting.best
    return {
        "sentence": best.sentence,
        "command": None if best.command is None else printable_text(best.command),
        "fits": [
            [
                FIXES[each.fix].title,
                f"{each.weight:g}",
                f"{each.num_trained:,}",
                f"{each.stopped_at} of {fitting.steps}",
                f"{each.seconds:.1f}",
            ]
            for each in fitting.fits
        ],
        "facts": [
            *[
                [f"Fitted on the {name}", f"{printable_text(data.name)}: {data.num_items:,} {unit}"]
                for name, data, unit in (("text", fitting.text, "windows"), ("task", fitting.task, "items"))
            ],
            ["Lowered on text", fitting.general],
        ],
        "directions": [
            {
                "weight": test.weight,
                "sentence": direction_sentence(test),
                "points": [
                    [
                        printable_text(each.matrix),
                        each.index,
                        each.factor,
                        each.intruder_share,
                        each.relative_value,
                        each.alignment,
                    ]
                    for each in test.directions
                ],
            }
            for test in fitting.directions
        ],
    }


def _facts(report: SweepReport) -> list[list[str]]:
    cut = f" ({report.task.num_cut:,} of them truncated)" if report.task.num_cut else ""
    rows = [
        ("Base", report.base),
        ("Tuned", report.tuned),
        ("Loss on the text, base", f"{report.base_loss:.3f} nats/token"),
        ("Loss on the text, tuned", f"{report.tuned_loss:.3f} nats/token"),
        ("Intruders", f"{report.num_intruders} in {report.num_matrices} matrices"),
        ("Text", f"{report.text.name}: {report.text.num_items:,} sequences, {report.text.protocol}"),
        ("Task", f"{report.task.name}: {report.task.num_items:,} examples{cut}, {report.task.protocol}"),
    ]
    return [[name, printable_text(value)] for name, value in rows]


def _parts(report: SweepReport) -> list[list[str]]:
    """The tuned model on all the data and on each half: rows of a table."""
    parts = [("all", report.text.num_items, report.task.num_items, report.forgetting, report.task_score)]
    parts += [
        (half.data, half.num_sequences, half.num_examples, half.forgetting, half.task_score)
        for half in report.halves
    ]
    return [
        [data, f"{sequences:,}", f"{examples:,}", nats(forgetting), score_text(score, report.metric)]
        for data, sequences, examples, forgetting, score in parts
    ]


def _cell(report: SweepCellReport) -> dict[str, Any]:
    return {
        "strength": report.cell.setting,
        "setting": f"strength {report.cell.setting:g}"
        if report.cell.weight is None
        else f"weight {report.cell.setting:g}",
        "matrices": report.cell.num_matrices,
        "norm": report.cell.change_norm,
        "forgetting": _three(report.forgetting),
        "change": _three(report.forgetting_change),
        "share": _three(report.forgetting_share),
        "task": _three(report.task),
        "taskChange": _three(report.task_change),
        "taskLoss": _three(report.task_loss_change),
        "difference": _three(report.forgetting_difference),
        "taskDifference": _three(report.task_difference),
    }


def _three(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.estimate, interval.low, interval.high]


def _setting_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else printable_text(str(value))
