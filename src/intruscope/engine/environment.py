"""What a figure depends on besides its inputs: the versions of the packages that computed it."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

CORE = ("torch", "numpy", "safetensors")
LAB = (*CORE, "transformers", "peft", "accelerate")


def environment(packages: tuple[str, ...] = CORE) -> dict[str, Any]:
    """Versions of Python, Intruscope and some packages, and the platform.

    Args:
        packages: Names of distributions. One that is not installed gets the version ``absent``.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{package: _version(package) for package in ("intruscope", *packages)},
    }


@functools.cache  # each is a file to find and read
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
