"""The number formats that packed (quantised) weights are read from, each in its own file.

A format turns the tensors that a checkpoint stores into the tensors that it means: each packed weight becomes
one :class:`StoredTensor` that dequantises itself when it is read, slice by slice. Everything after that,
from the layout to the scan, sees an ordinary tensor. Importing this loads no format.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.weights.stored import StoredTensor

_MODULES = ("fp8_block",)
"""Modules below ``formats/``, in the order in which they are tried. Each has a function
``unpacked(config, tensors)`` that returns :class:`Unpacked`, or None for a checkpoint of another format."""


class Unpacked(NamedTuple):
    """What a packed checkpoint means.

    Attributes:
        tensors: All its tensors, packed weights as readable ones under the same name.
        parts: Names among them that belong to packed weights (scales, zero points) and are no weights.
        title: What the format is called.
    """

    tensors: dict[str, StoredTensor]
    parts: frozenset[str]
    title: str


def unpack(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Unpacked | None:
    """Read a checkpoint's tensors through the first format that recognises all its packed weights.

    Args:
        config: Its config.
        tensors: As stored.

    Returns:
        None where nothing is packed, or no format is known.
    """
    for name in _MODULES:
        module = import_module(f"intruscope.weights.formats.{name}")
        found: Unpacked | None = module.unpacked(config, tensors)
        if found is not None:
            return found
    return None
