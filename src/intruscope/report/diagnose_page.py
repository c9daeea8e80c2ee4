"""The page of a diagnosis: the answer, what changed, what was forgotten, what to do, and what to run next.

It uses the frame, the style and the policy of the scan's page (see :mod:`intruscope.report.html`), the heat
map of scans and the trade-off chart of sweeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.report.diagnose import VERDICTS
from intruscope.report.html import render_page, write_page
from intruscope.report.page_data import page_data
from intruscope.report.sweep_page import sweep_data
from intruscope.report.words import printable_text
from intruscope.spectra.kinds import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.diagnose.records import DiagnoseReport
    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.records import ForgettingReport


def write_diagnose_html(report: DiagnoseReport, path: Path) -> None:
    """Write one page that works from ``file://`` and sends nothing anywhere.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
        ValueError: a record holds NaN or an infinity, which records forbid.
    """
    page = render_page(
        "diagnose.html.j2",
        styles=("page.css", "sweep.css", "diagnose.css"),
        scripts=("dom.js", "frame.js", "heat.js", "sweep_charts.js", "diagnose.js"),
        data=diagnose_data(report),
        title="Did it break, and what now?",
        subtitle=printable_text(f"{report.base} → {report.tuned}"),
    )
    write_page(page, path)


def diagnose_data(report: DiagnoseReport) -> dict[str, Any]:
    """Everything the page draws, as plain data; names from files are escaped here.

    Args:
        report: The diagnosis.
    """
    swept = {"metric": "loss", "series": []} if report.sweep is None else sweep_data(report.sweep)
    return {
        # The chart of sweeps reads these two.
        "metric": swept["metric"],
        "series": swept["series"],
        "kinds": list(KINDS),
        "verdict": report.verdict,
        "answer": VERDICTS[report.verdict],
        "sentences": [printable_text(text) for text in report.sentences],
        "scan": page_data([("", report.scan)])["reports"][0],
        "forgetting": None if report.forgetting is None else _rows(report.forgetting),
        "fixes": [
            {
                "title": fix.title,
                "setting": fix.setting,
                "change": _three(fix.forgetting_change),
                "share": None if fix.forgetting_share is None else _three(fix.forgetting_share),
                "task": _three(fix.task_change),
                "isCertain": fix.is_certain,
                "command": None if fix.command is None else printable_text(fix.command),
            }
            for fix in report.fixes
        ],
        "skipped": [[each.part, printable_text(each.reason), each.was_asked] for each in report.skipped],
        "commands": [[each.purpose, printable_text(each.command)] for each in report.commands],
        "environment": [
            [printable_text(str(name)), printable_text(str(value))]
            for name, value in report.scan.environment.items()
        ],
    }


def _rows(report: ForgettingReport) -> list[dict[str, Any]]:
    """What was measured before and after: ``harm`` is positive where the tuned model is worse."""
    rows: list[dict[str, Any]] = []

    def add(name: str, kind: str, base: float | None, tuned: float, harm: Interval, note: str) -> None:
        rows.append(
            {
                "name": printable_text(name),
                "kind": kind,
                "base": base,
                "tuned": tuned,
                "harm": _three(harm),
                "note": note,
            }
        )

    if report.base_loss is not None and report.tuned_loss is not None and report.forgetting is not None:
        add(
            "loss on the text",
            "nats",
            report.base_loss.nats_per_token.estimate,
            report.tuned_loss.nats_per_token.estimate,
            report.forgetting,
            f"{report.num_tokens:,} tokens in {report.num_sequences:,} sequences",
        )
    for skill in report.skills.figures if report.skills is not None else ():
        add(
            skill.label,
            "score",
            skill.base.estimate,
            skill.tuned.estimate,
            skill.loss,
            f"lost {skill.num_lost}, won {skill.num_won} of {skill.num_items}; adjusted p "
            f"{skill.p_adjusted:.2g}",
        )
    return rows


def _three(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]
