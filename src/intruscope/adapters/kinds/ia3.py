"""(IA)³ (arXiv 2205.05638): W' = diag(l) W, or W diag(l) in feed-forward modules, whose inputs are scaled.

PEFT also scales the bias of the former, which is no matrix.

Shape suffixes: F rows of the whole matrix, O out, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, wrong_value
from intruscope.weights.matrices import DenseUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    scale = parts["ia3_l"]
    if not _scales_inputs(tuple(scale.shape), options):
        return DenseUpdate(tuned_OI=base.matrix_OI * base.rows(scale.reshape(-1, 1)))
    per_input = scale.flatten()
    # Of a convolution, each input channel has as many columns as the kernel has places.
    return DenseUpdate(tuned_OI=base.matrix_OI * per_input.repeat_interleave(base.num_in // len(per_input)))


def _scales_inputs(shape: tuple[int, ...], options: Mapping[str, Any]) -> bool:
    if len(shape) == 2:  # (out, 1) or (1, in)
        return shape[0] == 1
    module = options["module"]  # a convolution's scale has one shape for both
    return any(module.endswith(name) for name in options["feedforward_modules"])


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The size of the side that is scaled."""
    shape = shapes["ia3_l"]
    if len(shape) < 2:
        raise ValueError("a scale has two axes or more")
    if _scales_inputs(shape, options):
        return None, shape[1] if len(shape) == 2 else None
    return max(shape), None


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    names = raw.get("feedforward_modules") or []
    if isinstance(names, str):
        names = []  # an expression; it matters for convolutions alone
    if not isinstance(names, (list, tuple, set)) or not all(isinstance(name, str) for name in names):
        raise wrong_value(names, "a list of names", "feedforward_modules", path)
    return {"feedforward_modules": tuple(sorted(names))}


KIND = AdapterKind(
    name="IA3",
    title="(IA)³",
    words={"ia3_l": "ia3_l"},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True, additive=False),
    required=frozenset({"ia3_l"}),
    read_options=_read_options,
)
