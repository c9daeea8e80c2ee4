"""VeRA (arXiv 2310.11454): ΔW = diag(b) B diag(d) A with random A and B that all modules share.

A and B must be in the file (``save_projection``, the default); modules take their first rows and columns.

Shape suffixes: F rows of the whole matrix, I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, needs_projection

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import LowRankUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> LowRankUpdate:  # noqa: ARG001
    """The update; see the module."""
    right_RI = parts["vera_A"][:, : base.num_in] * parts["vera_lambda_d"].unsqueeze(-1)
    left_FR = parts["vera_B"][: base.num_out] * parts["vera_lambda_b"].unsqueeze(-1)
    return base.low_rank(left_FR, right_RI)


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, None]:  # noqa: ARG001 - shapes tell
    """The outputs; the shared A is as wide as the widest module."""
    (num_out,), (rank,) = shapes["vera_lambda_b"], shapes["vera_lambda_d"]
    if shapes["vera_A"][0] != rank or shapes["vera_B"][1] != rank:
        raise ValueError("ranks differ")
    return num_out, None


def _most_inputs(shapes: Shapes) -> int:
    return shapes["vera_A"][1]


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    needs_projection(raw, path)
    return {}


KIND = AdapterKind(
    name="VERA",
    title="VeRA",
    words={name: name for name in ("vera_lambda_b", "vera_lambda_d")},
    shared={name: name for name in ("vera_A", "vera_B")},
    update=ClosedForm(decode=decode, sizes=sizes, most_inputs=_most_inputs),
    required=frozenset({"vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"}),
    read_options=_read_options,
)
