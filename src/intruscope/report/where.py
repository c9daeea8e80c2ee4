"""Where a fine-tune forgot: sentences, a table, the page and the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import UsageError, printable
from intruscope.plots.figures import write_figures
from intruscope.plots.shares import ShareBar, ShareMap, bars_figure, maps_figure
from intruscope.report.html import render_page, write_page
from intruscope.report.words import printable_text
from intruscope.spectra.kinds import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.forgetting.where import MatrixShare, PathTotal, Share, WhereReport

_NUM_SHOWN = 6
"""Parts in the terminal; the page and the JSON have all of them."""


def where_sentence(where: WhereReport) -> str:
    """What the attribution says about the intruders, or else where most was forgotten.

    Args:
        where: The attribution.
    """
    intruders = where.spans[0]
    has_intruders = any(vector.verdict == "intruder" for each in where.matrices for vector in each.vectors)
    if intruders.forgetting_share is None or not has_intruders:
        parts = [part for part in (*where.matrices, *where.tensors) if part.forgetting_share is not None]
        start = "" if has_intruders else "The tuned model has no intruders. "
        if not parts:
            return f"{start}There is no forgetting to attribute."
        most = max(parts, key=lambda part: part.forgetting_share or 0.0)
        return (
            f"{start}The largest share of forgetting, {_percent(most.forgetting_share)}, is in "
            f"{printable(most.name)}, which has {most.norm_share:.0%} of the squared norm of the update."
        )
    held = (
        f"The intruders' span holds {intruders.norm_share:.0%} of the squared norm of the update and "
        f"{_with_bounds(intruders.forgetting_share, intruders.forgetting_interval)} of the forgetting"
    )
    if intruders.gain_share is None:
        return f"{held}."
    held += f", and {_with_bounds(intruders.gain_share, intruders.gain_interval)} of the gain on the task."
    if intruders.ratio is None:
        return held
    ratio = intruders.ratio
    bounds = f"ratio {ratio.estimate:.2f}, {ratio.low:.2f} to {ratio.high:.2f}"
    if ratio.low > 1.0:
        return f"{held} It forgets more for what it learns than the update as a whole ({bounds})."
    if ratio.high < 1.0:
        return f"{held} It forgets less for what it learns than the update as a whole ({bounds})."
    return f"{held} For what it learns, it forgets about as much as the update as a whole ({bounds})."


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _with_bounds(value: float, found: Interval | None) -> str:
    return _percent(value) + ("" if found is None else f" ({found.low:.0%} to {found.high:.0%})")


def where_summary(where: WhereReport) -> list[RenderableType]:
    """What a terminal shows: the sentence, the spans, and the parts with the largest shares."""
    parts = sorted((*where.matrices, *where.tensors), key=lambda part: -(part.forgetting_share or 0.0))
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("part", "squared norm", "forgetting", *(("gain", "ratio") if where.gain_total else ())):
        table.add_column(name, justify="left" if name == "part" else "right", overflow="fold")
    for place, part in enumerate((*where.spans, *parts[:_NUM_SHOWN])):
        table.add_row(*_row(part, has_gain=where.gain_total is not None))
        if place == len(where.spans) - 1:
            table.add_section()
    task = printable(where.task or "")
    totals = [("forgetting", where.total, where.protocol), ("gain", where.gain_total, task)]
    lines = [
        f"{name}: the parts add up to {found.attributed:+.4f} {found.unit}, measured {found.measured:+.4f} "
        f"({found.num_points} points, {how})"
        for name, found, how in totals
        if found is not None
    ]
    return [
        Text(where_sentence(where), style="bold"),
        table,
        *(Text(f"{each.severity}[{each.code}] {printable_text(each.message)}") for each in where.findings),
        Text("\n".join(lines), style="dim"),
    ]


def _row(part: Share, *, has_gain: bool) -> tuple[str, ...]:
    def cell(value: float | None, found: Interval | None) -> str:
        if value is None:
            return ""
        return f"{value:.1%}" + (
            "" if found is None else f" ({100 * found.low:.0f} to {100 * found.high:.0f})"
        )

    row = (
        printable(part.name),
        f"{part.norm_share:.1%}",
        cell(part.forgetting_share, part.forgetting_interval),
    )
    if not has_gain:
        return row
    ratio = "" if part.ratio is None else f"{part.ratio.estimate:.2f}"
    return (*row, cell(part.gain_share, part.gain_interval), ratio)


# --- the page --------------------------------------------------------------------------------------


def write_where_html(report: ForgettingReport, path: Path) -> None:
    """Write one page that works from ``file://`` and sends nothing anywhere.

    Raises:
        UsageError: the report has no attribution.
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    page = render_page(
        "where.html.j2",
        styles=("page.css", "compare.css", "where.css"),
        scripts=("dom.js", "frame.js", "heat.js", "lists.js", "where.js"),
        data=where_data(report),
        title="Where did it forget?",
        subtitle=f"{printable_text(report.base)} → {printable_text(report.tuned)}",
    )
    write_page(page, path)


def where_data(report: ForgettingReport) -> dict[str, Any]:
    """Everything the page draws, as plain data; names from files are escaped here.

    Args:
        report: A measurement with an attribution.

    Raises:
        UsageError: the report has no attribution.
    """
    where = _where(report)
    totals = [("Forgetting", where.total), ("Gain on the task", where.gain_total)]
    settings = report.settings
    return {
        "kinds": list(KINDS),
        "sentence": where_sentence(where),
        "hasGain": where.gain_total is not None,
        "totals": [_total(name, found) for name, found in totals if found is not None],
        "findings": [
            [each.severity, printable_text(each.code), printable_text(each.message)]
            for each in where.findings
        ],
        "spans": [_share(span) for span in where.spans],
        "matrices": [_matrix(matrix) for matrix in where.matrices],
        "tensors": [_share(tensor) for tensor in where.tensors],
        "settings": [
            ["text", printable_text(", ".join(source.name for source in report.texts))],
            ["task", "none" if where.task is None else printable_text(where.task)],
            ["protocol", where.protocol],
            ["intruders", f"top {where.k} left vectors, epsilon {where.epsilon:g}"],
            ["context", str(settings.context)],
            ["seed", str(settings.seed)],
            ["bootstrap resamples", str(settings.num_resamples)],
            ["computed in", f"{settings.dtype} on {settings.device}"],
            *(
                [printable_text(str(name)), printable_text(str(value))]
                for name, value in report.environment.items()
            ),
        ],
    }


def _where(report: ForgettingReport) -> WhereReport:
    if report.where is None:
        raise UsageError("this report does not say where the model forgot", remedy="measure it with --where")
    return report.where


def _total(name: str, found: PathTotal) -> dict[str, Any]:
    return {
        "name": name,
        "measured": f"{found.measured:+.4f} {found.unit}",
        "attributed": f"{found.attributed:+.4f} {found.unit}",
        "points": found.num_points,
        "sequences": found.num_sequences,
        "groups": found.num_groups,
    }


def _share(part: Share) -> dict[str, Any]:
    return {
        "name": printable_text(part.name),
        "norm": part.norm_share,
        "forgetting": _bounds(part.forgetting_share, part.forgetting_interval),
        "gain": _bounds(part.gain_share, part.gain_interval),
        "ratio": None if part.ratio is None else _bounds(part.ratio.estimate, part.ratio),
    }


def _bounds(value: float | None, found: Interval | None) -> list[float | None] | None:
    if value is None:
        return None
    return [value, None, None] if found is None else [value, found.low, found.high]


def _matrix(matrix: MatrixShare) -> dict[str, Any]:
    return {
        **_share(matrix),
        "kind": printable_text(matrix.kind),
        "layer": matrix.layer,
        "directions": [
            [each.norm_share, each.forgetting_share, each.gain_share] for each in matrix.directions
        ],
        "vectors": [
            [each.norm_share, each.forgetting_share, each.gain_share, each.verdict] for each in matrix.vectors
        ],
    }


# --- pictures and table ----------------------------------------------------------------------------


def write_where_plots(report: ForgettingReport, folder: Path) -> tuple[str, ...]:
    """Write ``where-map`` and ``where-spans`` as PNG and SVG.

    Args:
        report: A measurement with an attribution.
        folder: Created if it does not exist.

    Returns:
        The names of the files.

    Raises:
        UsageError: the report has no attribution.
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """
    where = _where(report)

    def draw() -> list[tuple[str, object]]:
        figures: list[tuple[str, object]] = [("where-spans", bars_figure(_bars(where), title=report.tuned))]
        maps = [each for each in _maps(where) if each.cells]
        return [("where-map", maps_figure(maps)), *figures] if maps else figures

    return write_figures(draw, folder)


def _maps(where: WhereReport) -> list[ShareMap]:
    has_gain = where.gain_total is not None
    found = [ShareMap(title="share of forgetting (%)", cells=_cells(where, "forgetting_share"))]
    if has_gain:
        found.append(ShareMap(title="share of the gain (%)", cells=_cells(where, "gain_share")))
        ratios = {
            (matrix.kind, matrix.layer): matrix.ratio.estimate
            for matrix in where.matrices
            if matrix.ratio is not None
        }
        found.append(
            ShareMap(title="share of forgetting over share of the gain", cells=ratios, is_ratio=True)
        )
    return found


def _cells(where: WhereReport, field: str) -> dict[tuple[str, int | None], float]:
    """Percent by kind and layer; shares of several matrices in one place (experts) add up."""
    found: dict[tuple[str, int | None], float] = {}
    for matrix in where.matrices:
        value = getattr(matrix, field)
        if value is not None:
            key = (matrix.kind, matrix.layer)
            found[key] = found.get(key, 0.0) + 100.0 * value
    return found


def _bars(where: WhereReport) -> list[ShareBar]:
    found = []
    for span in where.spans:
        found.append(ShareBar(part=span.name, series="squared norm", value=span.norm_share))
        for series, value, interval in (
            ("forgetting", span.forgetting_share, span.forgetting_interval),
            ("the gain", span.gain_share, span.gain_interval),
        ):
            if value is not None:
                low, high = (value, value) if interval is None else (interval.low, interval.high)
                found.append(ShareBar(part=span.name, series=series, value=value, low=low, high=high))
    return found


def write_where_parquet(report: ForgettingReport, path: Path) -> None:
    """Write one row per part as Parquet.

    Raises:
        UsageError: the report has no attribution.
        OutputConflict, ResourceExhausted: the file cannot be written.
    """
    from intruscope.records.tables import write_parquet

    where = _where(report)
    write_parquet(where.columns, where.rows(), path)
