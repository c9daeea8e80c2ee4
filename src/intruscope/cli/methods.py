"""``intruscope methods``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.outputs import TABLE, Outputs, Writes
from intruscope.cli.screen import show
from intruscope.options import option


def methods(
    outputs: Annotated[Outputs, Writes("methods")],
    name: str | None = option(None, help="Show the details of this method.", panel="Input", positional=True),
) -> None:
    """List the fine-tuning methods with their papers, options and the sources of their defaults."""
    from intruscope.methods import find, registered
    from intruscope.report.methods import method_details

    chosen = registered() if name is None else (find(name),)
    outputs.check([])
    if name is not None and not outputs.given:
        show(method_details(chosen[0]), width=TABLE["methods"].width)
    else:
        outputs.write(chosen, quiet=bool(outputs.given))
