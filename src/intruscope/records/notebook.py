"""Pieces of HTML for notebooks: one frame, facts, tables, and small maps as inline SVG.

No scripts and no addresses. Colours are those of the notebook, with one accent of varying opacity, so that
a report reads well on light and on dark backgrounds without asking which one it is on.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from intruscope.errors import printable_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ACCENT = "#e0662f"
_STYLE = f"""
.intruscope{{font:13px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif;color:inherit;max-width:64rem;
border:1px solid rgba(128,128,128,.35);border-radius:8px;padding:12px 16px;margin:4px 0}}
.intruscope .top{{opacity:.7;overflow-wrap:anywhere}}
.intruscope .big{{font-size:26px;font-weight:600;line-height:1.2;margin:2px 0}}
.intruscope .big small{{font-size:14px;font-weight:400;opacity:.8}}
.intruscope .facts{{display:flex;flex-wrap:wrap;gap:4px 28px;margin:8px 0}}
.intruscope .facts div span{{display:block;font-size:11px;opacity:.65}}
.intruscope .side{{display:flex;flex-wrap:wrap;gap:12px 32px;align-items:flex-start;margin-top:10px}}
.intruscope h4{{font-size:12px;font-weight:600;margin:0 0 4px}}
.intruscope table{{border-collapse:collapse;margin:0;font-size:12px;color:inherit;background:none}}
.intruscope th,.intruscope td{{padding:2px 10px 2px 0;text-align:left!important;border:0;background:none;
border-bottom:1px solid rgba(128,128,128,.2);max-width:22rem;overflow-wrap:anywhere;white-space:normal}}
.intruscope th{{font-weight:600;opacity:.75}}
.intruscope .n{{text-align:right!important;font-variant-numeric:tabular-nums;white-space:nowrap}}
.intruscope svg text{{fill:currentColor;font:11px system-ui,sans-serif}}
.intruscope .warn{{border-left:3px solid {_ACCENT};padding-left:8px;margin:6px 0}}
.intruscope .note{{font-size:11.5px;opacity:.7;margin:8px 0 0}}
""".replace("\n", "")


def framed(pieces: Sequence[str]) -> str:
    """One report: its pieces in a frame with its style."""
    return f'<div class="intruscope"><style>{_STYLE}</style>{"".join(pieces)}</div>'


def text(value: object) -> str:
    """Foreign text as HTML: control characters escaped, then markup."""
    return escape(printable_text(str(value)))


def line(value: object, kind: str) -> str:
    """A paragraph of a class: ``top``, ``warn`` or ``note``."""
    return f'<div class="{kind}">{text(value)}</div>'


def headline(big: str, rest: str) -> str:
    """The one figure that a reader should take away, and what it is of."""
    return f'<div class="big">{text(big)} <small>{text(rest)}</small></div>'


def facts(pairs: Mapping[str, str | None]) -> str:
    """Names and values side by side; those without a value are left out."""
    cells = [f"<div><span>{text(name)}</span>{text(value)}</div>" for name, value in pairs.items() if value]
    return f'<div class="facts">{"".join(cells)}</div>' if cells else ""


def side_by_side(*blocks: str) -> str:
    """Blocks in a row where there is room."""
    return f'<div class="side">{"".join(f"<div>{block}</div>" for block in blocks if block)}</div>'


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> str:
    """A small table; numbers and percentages are set to the right."""
    if not rows:
        return ""
    is_number = [all(_is_figure(row[place]) for row in rows) for place in range(len(columns))]
    kinds = [' class="n"' if number else "" for number in is_number]
    head = "".join(f"<th{kind}>{text(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<h4>{text(title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float]
) -> str:
    """A map of counts as SVG: the darker, the more; missing cells are left empty.

    Args:
        title: Above it.
        rows: Labels from top to bottom.
        columns: Labels from left to right.
        values: By row and column, from 0.
    """
    if not values:
        return ""
    size = 24 if len(columns) <= 24 else max(6, 576 // len(columns))
    left = 8 + 7 * max(len(row) for row in rows)
    every = max(1, math.ceil(24 / size))
    top = max(1.0, *values.values())
    parts = []
    for y, row in enumerate(rows):
        parts.append(f'<text x="{left - 6}" y="{y * 24 + 16}" text-anchor="end">{text(row)}</text>')
        for x, column in enumerate(columns):
            value = values.get((row, column))
            if value is None:
                continue
            place = f'x="{left + x * size}" y="{y * 24}" width="{size - 1}" height="23"'
            fill = f'fill="{_ACCENT}" fill-opacity="{0.07 + 0.83 * value / top:.2f}"'
            parts.append(f"<rect {place} {fill}><title>{text(row)} {text(column)}: {value:g}</title></rect>")
            if size >= 20 and value:
                middle = left + x * size + (size - 1) / 2
                parts.append(f'<text x="{middle:g}" y="{y * 24 + 16}" text-anchor="middle">{value:g}</text>')
    for x in range(0, len(columns), every):
        middle = left + x * size + (size - 1) / 2
        parts.append(
            f'<text x="{middle:g}" y="{len(rows) * 24 + 14}" text-anchor="middle">{text(columns[x])}</text>'
        )
    width, height = left + len(columns) * size + 8, len(rows) * 24 + 20
    label = f'role="img" aria-label="{text(title)}"'
    return (
        f"<h4>{text(title)}</h4>"
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" {label}>'
        f"{''.join(parts)}</svg>"
    )


def _is_figure(cell: str | int | float | None) -> bool:
    return not isinstance(cell, str) or cell.endswith("%") or cell[:1] in "+−-0123456789"


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else text(value)
