"""The methods by name. Their files are light: torch and PEFT are imported when a model is built."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from intruscope.errors import UsageError, nearest, printable

if TYPE_CHECKING:
    from intruscope.methods.contract import Method

_OURS = (
    "b_only", "sora", "prilora", "melora", "multilora", "chain", "rac", "lora_experts", "oplora", "lora_null",
    "corda", "milora", "clora", "construct",
)  # fmt: skip
_PEFT = (
    "full", "lora", "rslora", "lora_plus", "lora_fa", "dora", "pissa", "mica", "olora", "eva",
    "adalora", "delora", "vera", "randlora", "loha", "lokr", "oft", "boft", "miss", "osf",
)  # fmt: skip
_FILES: tuple[str, ...] = (*_PEFT, *_OURS)
"""Modules of this folder, each with a METHOD of the same name, in the order of the table."""


def registered() -> tuple[Method, ...]:
    """Every method."""
    return tuple(_method(name) for name in _FILES)


def find(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: there is none; the message names those that are most like it.
    """
    if name in _FILES:
        return _method(name)
    raise UsageError(
        f"unknown method {printable(name)}; known methods are {', '.join(_FILES)}",
        remedy=nearest(name, _FILES, what="method") or "see: intruscope methods",
    )


def _method(name: str) -> Method:
    method: Method = import_module(f"intruscope.methods.{name}").METHOD
    return method
