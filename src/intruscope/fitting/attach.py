"""Corrections of the outputs of a live model's layers, in place of other weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from intruscope.adapters.live import LivePair
    from intruscope.fitting.parts import Correction, Numbers, Part


@contextmanager
def attached(pair: LivePair, parts: Sequence[Part], numbers: Mapping[str, Numbers]) -> Iterator[None]:
    """In this context the parts correct the tuned model; the base stays as it is.

    Args:
        pair: A loaded pair, in its tuned state.
        parts: What is fitted.
        numbers: The trained numbers of each part, by its key, on the model's device. They may change.

    Raises:
        UnsupportedFormat: a matrix that is not the weight of a linear layer.
    """
    handles: list[Any] = []
    try:
        for part in parts:
            view, layers = pair.layers_with(part.layer)
            device: torch.device = numbers[part.key][0].device
            hook = _hook(part.correction(view, device), numbers[part.key], layers[0])
            handles += [layer.register_forward_hook(hook) for layer in layers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(correct: Correction, numbers: Numbers, first: Any) -> Any:
    # A correction belongs to the tuned weight: where the layer points at the base's, it does nothing.
    tuned = first.weight.data_ptr()

    def add(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer.weight.data_ptr() != tuned:
            return output
        return output + correct(numbers, given[0].float()).to(output.dtype)

    return add
