"""An adapter switched on in a base that is loaded already, without loading the base again.

An adapter becomes edits of the base's tensors (:meth:`intruscope.adapters.live.LivePair.with_edits`), so only
the tensors that it changes are copied. Some adapters are more than that: they bring a head of their own, or
change an embedding whose tensor the head shares. For these :func:`adapter_edits` returns None: load them as a
pair.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.vectors import trained_vectors

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.adapters.live import Edit, LivePair
    from intruscope.adapters.opening import OpenedPair
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.stored import StoredTensor


@dataclass(frozen=True, kw_only=True)
class _TunedMatrix:
    """A matrix with the adapter's update; read when it is applied."""

    pair: MatrixPair

    @property
    def name(self) -> str:
        return self.pair.name

    def applied(self, base_OI: Tensor, tuned_OI: Tensor) -> Tensor:  # noqa: ARG002 - both are the base here
        return self.pair.load_float64()[1].to(base_OI.device, base_OI.dtype)


@dataclass(frozen=True, kw_only=True)
class _TunedTensor:
    """A tensor that the adapter stores whole, such as a trained bias."""

    name: str
    tensor: StoredTensor

    def applied(self, base_OI: Tensor, tuned_OI: Tensor) -> Tensor:  # noqa: ARG002 - as above
        return self.tensor.read().to(base_OI.device, base_OI.dtype).reshape(base_OI.shape)


def adapter_edits(opened: OpenedPair, base: LivePair) -> tuple[Edit, ...] | None:
    """What an adapter changes, as edits of its base.

    Args:
        opened: The base and the adapter.
        base: The same base, loaded as both states of a pair.

    Returns:
        None where edits of the base's tensors are not all that the adapter does.

    Raises:
        IntruscopeError: the adapter cannot be read.
    """
    adapter, pairing = opened.tuned, opened.pairing
    if not isinstance(adapter, AdapterSource) or opened.in_memory or not pairing.complete:
        return None
    if any(entry.head is not None for entry in pairing.coverage):
        return None
    edits: list[_TunedMatrix | _TunedTensor] = [_TunedMatrix(pair=pair) for pair in pairing.pairs]
    for vector in trained_vectors(adapter, opened.base):
        if vector.module is not None or vector.target is None:
            return None
        edits.append(_TunedTensor(name=vector.target, tensor=vector.tensor))
    model = base.language_model().model
    uses = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    held = [base.parameter_of(edit.name) for edit in edits]
    if any(parameter is None or uses[id(parameter)] != 1 for parameter in held):
        return None
    return tuple(edits)
