"""SHiRA (arXiv 2406.13175): a few entries of W are trained; their places are stored beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:  # noqa: ARG001
    """The tuned matrix; see the module."""
    rows, columns = parts["shira_indices"].long()
    delta_FI = parts["shira_weight"].new_zeros(base.num_out, base.num_in)
    delta_FI.index_put_((rows, columns), parts["shira_weight"], accumulate=True)
    return base.plus(delta_FI)


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[None, None]:  # noqa: ARG001
    """Neither size: the places are read later."""
    (num_entries,) = shapes["shira_weight"]
    if shapes["shira_indices"] != (2, num_entries):
        raise ValueError("there are not as many places as entries")
    return None, None


KIND = AdapterKind(
    name="SHIRA",
    title="SHiRA",
    words={name: name for name in ("shira_weight", "shira_indices")},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset({"shira_weight", "shira_indices"}),
)
