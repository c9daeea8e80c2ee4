"""``intruscope methods``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intruscope.cli.outputs import write_record
from intruscope.cli.screen import show

_WIDTH = 160
"""Columns where the table goes to a file or a pipe: a method keeps to few lines."""


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method in full.")] = None,
    json: Annotated[str | None, typer.Option(help="Write the list as JSON; - for stdout.")] = None,
) -> None:
    """List the fine-tuning methods: papers, options and where their defaults are from."""
    from intruscope.methods import find, registered
    from intruscope.report.methods import method_details, methods_json, methods_table
    from intruscope.weights.output import check_output

    chosen = (find(name),) if name is not None else registered()
    if json is None:
        show(methods_table(chosen) if name is None else method_details(chosen[0]), width=_WIDTH)
        return
    if json != "-":
        check_output(Path(json), [])
    write_record(methods_json(chosen), json)
