"""The adapter kinds that are read, each in its own file. Importing this loads none of them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.kind import AdapterKind
    from intruscope.weights.stored import StoredTensor

_MODULES = {
    "LORA": "lora",
    "ADALORA": "adalora",
    "BOFT": "boft",
    "C3A": "c3a",
    "DELORA": "delora",
    "EMR": "emr",
    "FOURIERFT": "fourierft",
    "GRALORA": "gralora",
    "HRA": "hra",
    "IA3": "ia3",
    "LOHA": "loha",
    "LOKR": "lokr",
    "MISS": "miss",
    "OFT": "oft",
    "OSF": "osf",
    "RANDLORA": "randlora",
    "SHIRA": "shira",
    "VBLORA": "vblora",
    "VERA": "vera",
    # Formats without PEFT's config, in the order in which they are tried.
    "diffusers": "diffusers",
    "loralib": "loralib",
}
"""Name of the kind to its module below ``kinds/``."""


def names() -> tuple[str, ...]:
    """All kinds, PEFT's by ``peft_type``."""
    return tuple(_MODULES)


@cache
def find(name: str) -> AdapterKind:
    """A kind by its name; KeyError for one that is not read."""
    module = import_module(f"intruscope.adapters.kinds.{_MODULES[name]}")
    kind: AdapterKind = module.KIND
    return kind


def recognised(tensors: Mapping[str, StoredTensor]) -> AdapterKind | None:
    """The kind of an adapter that has no config; None where no key is known."""
    for name in _MODULES:
        if not name.isupper():
            kind = find(name)
            if kind.recognises is not None and kind.recognises(tensors):
                return kind
    return None
