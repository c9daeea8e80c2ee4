"""``intruscope layers``."""

from __future__ import annotations

from typing import Annotated

from intruscope.cli.groups import ALLOW_PICKLE, MODEL
from intruscope.cli.outputs import Outputs, Writes
from intruscope.errors import UsageError


def layers(
    outputs: Annotated[Outputs, Writes("layers")], model: str = MODEL, allow_pickle: bool = ALLOW_PICKLE
) -> None:
    """List the matrices that a scan would see in a model. Only file headers are read."""
    from intruscope.adapters.folder import find_adapter
    from intruscope.weights.layout import base_matrices
    from intruscope.weights.names import parse_name
    from intruscope.weights.source import open_model

    outputs.check([model])
    name = parse_name(model)
    if name.adapter is not None or find_adapter(name, allow_pickle=allow_pickle) is not None:
        raise UsageError(
            "this is an adapter; its matrices are those of its base",
            remedy="give the base model, or run intruscope scan ADAPTER --dry-run",
            file=model,
        )
    source = open_model(name, allow_pickle=allow_pickle)
    outputs.write(source, base_matrices(source), quiet=bool(outputs.given))
