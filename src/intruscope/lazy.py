"""Packages that import their names when they are first used, and can be called like the verb they hold."""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__`` (PEP 562).

    Args:
        package: Its ``__name__``.
        homes: For each public name the module that defines it; an empty string for a module of that name in
            the package.
    """

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home), name) if home else import_module(f"{package}.{name}")

    return find, lambda: sorted(homes)


class _VerbPackage(ModuleType):
    """A package that holds a function of its own name, and can be called like it.

    ``intruscope.repair`` is both a package and a verb. Python binds the package to that name as soon as any
    of its modules is imported, so a function there would come and go with the order of imports.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._verb(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        return signature(self._verb)

    @property
    def _verb(self) -> Callable[..., Any]:
        verb: Callable[..., Any] = getattr(self, self.__name__.rpartition(".")[2])
        return verb


def callable_like_its_verb(package: str) -> None:
    """Let ``package(...)`` call the function in it that has its name.

    Args:
        package: ``__name__`` of a package that is being imported.
    """
    sys.modules[package].__class__ = _VerbPackage
