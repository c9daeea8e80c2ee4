"""``intruscope layers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intruscope.cli.options import AllowPickle  # noqa: TC001 - typer reads annotations when it runs
from intruscope.cli.outputs import write_record
from intruscope.cli.screen import show
from intruscope.errors import UsageError

_WIDTH = 140
"""Columns where the table goes to a file or a pipe: most names keep to one line for grep."""


def layers(
    model: Annotated[str, typer.Argument(help="Model: path or org/name@revision.")],
    json: Annotated[str | None, typer.Option(help="Write the list as JSON; - for stdout.")] = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """List the matrices that a scan would see in a model, from its file headers alone."""
    from intruscope.adapters.folder import find_adapter
    from intruscope.report.layers import layers_json, layers_table
    from intruscope.weights.layout import base_matrices
    from intruscope.weights.names import parse_name
    from intruscope.weights.output import check_output
    from intruscope.weights.source import open_model

    name = parse_name(model)
    if json not in (None, "-"):
        check_output(Path(str(json)), [name.path] if name.path else [])
    if name.adapter is not None or find_adapter(name, allow_pickle=allow_pickle) is not None:
        raise UsageError(
            "got an adapter, expected a model: an adapter's matrices are those of its base",
            remedy="name the base, or run intruscope scan ADAPTER --dry-run",
            file=model,
        )
    source = open_model(name, allow_pickle=allow_pickle)
    listing = base_matrices(source)
    if json is None:
        show(layers_table(source, listing), width=_WIDTH)
        return
    write_record(layers_json(source, listing), json)
