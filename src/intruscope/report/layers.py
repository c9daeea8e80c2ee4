"""The matrices of one model, as a table and as the public schema ``intruscope.layers/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from intruscope.weights.layout import MatrixListing
    from intruscope.weights.source import ModelSource

SCHEMA = "intruscope.layers/1"


def layers_json(source: ModelSource, listing: MatrixListing) -> dict[str, Any]:
    """Lay a listing out as plain data.

    Args:
        source: The model.
        listing: Its matrices, from :func:`intruscope.weights.layout.base_matrices`.
    """
    return {
        "schema": SCHEMA,
        "model": source.name,
        "revision": source.revision,
        "matrices": [
            {
                "name": view.name,
                "kind": view.kind,
                "layer": view.layer,
                "shape": list(view.shape),
                "scope": view.scope,
                "tensor": stored,
                "dtype": view.tensor.dtype,
                "note": listing.notes.get(stored),
            }
            for stored, views in listing.matrices.items()
            for view in views
        ],
        "skipped": [
            {"tensor": entry.tensor, "reason": entry.reason, "holds_weights": entry.tensor in listing.gaps}
            for entry in listing.skipped
        ],
    }


def layers_table(source: ModelSource, listing: MatrixListing) -> list[RenderableType]:
    """The same for people: a line for every matrix, then why other tensors are none.

    Args:
        source: The model.
        listing: Its matrices.

    Returns:
        Renderables for ``rich``. A matrix that is part of a fused tensor, or is stored under another name
        than its own, is followed by that name.
    """
    views = [(stored, view) for stored, group in listing.matrices.items() for view in group]
    table = Table(
        title=f"{len(views)} matrices of {printable(source.name)}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("matrix", overflow="fold")
    table.add_column("kind", overflow="fold")
    for heading in ("layer", "shape"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("scope", "dtype"):
        table.add_column(heading, no_wrap=True)
    for stored, view in views:
        name = Text(printable(view.name))
        if stored != f"{view.name}.weight":
            name.append(f"\n  in {printable(stored)}", style="dim")
        layer = "" if view.layer is None else str(view.layer)
        shape = f"{view.shape[0]} x {view.shape[1]}"
        table.add_row(name, Text(printable(view.kind)), layer, shape, view.scope, view.tensor.dtype)
    parts: list[RenderableType] = [table]
    if listing.skipped:
        ledger = Table(
            title=f"{len(listing.skipped)} tensors that are none", box=box.SIMPLE_HEAD, title_justify="left"
        )
        ledger.add_column("tensor", overflow="fold")
        ledger.add_column("reason", overflow="fold")
        for entry in listing.skipped:
            ledger.add_row(Text(printable(entry.tensor)), Text(printable(entry.reason)))
        parts.append(ledger)
    if listing.gaps:
        parts.append(
            Text(
                f"{len(listing.gaps)} of them hold weights: a scan of this model would be incomplete",
                style="bold yellow",
            )
        )
    return parts
