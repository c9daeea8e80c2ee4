"""One self-contained page for one or several scans: no address, one style, one script, strict CSP.

Charts are drawn by hand, as SVG: plotly.js is 4.5 MB in every page and sets styles in ways that a strict
Content-Security-Policy forbids. The script builds every node itself, so a name from a file can only ever
become a text or an attribute's value; the data it reads stands in a block that no parser can leave.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import IO, TYPE_CHECKING

from intruscope.errors import printable_text
from intruscope.report.page_data import page_data
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intruscope.spectra.records import ScanReport

_SCRIPTS = ("dom.js", "frame.js", "heat.js", "charts.js", "tables.js", "page.js")


def write_html(
    reports: Sequence[tuple[str, ScanReport]],
    path: Path,
    *,
    title: str,
    notes: Sequence[tuple[str, str]] = (),
    sources: Sequence[tuple[str, str]] = (),
) -> None:
    """Write one page that works from ``file://`` and sends nothing anywhere.

    Args:
        reports: Label and scan; several are shown side by side.
        path: The page.
        title: Its heading.
        notes: Heading and text of what stands above the scans.
        sources: The same of what stands below them, such as which data they were made from.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
        ValueError: a record holds NaN or an infinity, which records forbid.
    """
    page = render_page(
        "page.html.j2",
        styles=("page.css",),
        scripts=_SCRIPTS,
        data=page_data(reports),
        title=printable_text(title),
        notes=_printable(notes),
        sources=_printable(sources),
    )
    write_page(page, path)


def _printable(lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(printable_text(heading), printable_text(text)) for heading, text in lines]


def write_page(page: str, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
    """
    encoded = page.encode("utf-8")

    def write(stream: IO[bytes]) -> None:
        stream.write(encoded)

    write_atomically(path, write)


def render_page(
    template: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: object,
    **texts: object,
) -> str:
    """One page of a template under a policy that allows its own style and script, and nothing else.

    Args:
        template: Name of the template.
        styles: Names of style sheets, in order.
        scripts: Names of scripts, in order.
        data: What the script reads; plain data without NaN.
        texts: What the template shows; escaped there.

    Raises:
        ValueError: the data hold NaN or an infinity.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = "".join(_template(name) for name in styles)
    script = "".join(_template(name) for name in scripts)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # Everything but our own three texts goes through autoescape.
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_template(template)).render(
        policy=Markup(policy),  # noqa: S704 - built above from hashes
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - our own files
        data=Markup(_inert_json(data)),  # noqa: S704 - no "<" is left in it
        **texts,
    )


def _template(name: str) -> str:
    return files("intruscope.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _inert_json(data: object) -> str:
    """JSON that no HTML parser can leave: every ``<``, ``>`` and ``&`` is a JSON escape."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
