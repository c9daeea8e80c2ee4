"""C3A (arXiv 2407.19342): ΔW is made of circulant blocks, one kernel each, divided by the number of inputs.

PEFT computes them by a Fourier transform of the identity; entry (i, j) of a block with the kernel w is
w[(j - i) mod b] in exact arithmetic.

Shape suffixes: M blocks of rows, N blocks of columns, D their size; F = M D, I = N D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:  # noqa: ARG001
    """The tuned matrix; see the module."""
    import torch

    kernel_MND = parts["c3a_kernel"]
    size = kernel_MND.shape[2]
    places = torch.arange(size)
    turned = kernel_MND[:, :, (places[None, :] - places[:, None]) % size]  # (M, N, D, D)
    delta_FI = turned.permute(0, 2, 1, 3).reshape(base.num_out, base.num_in)
    return base.plus(delta_FI / base.num_in)


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG001 - shapes tell all
    """(out, in) of the whole matrix."""
    rows, columns, size = shapes["c3a_kernel"]
    return rows * size, columns * size


KIND = AdapterKind(
    name="C3A",
    title="C3A",
    words={"c3a_kernel": "c3a_kernel"},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset({"c3a_kernel"}),
)
