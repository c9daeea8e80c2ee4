"""The module patterns of a foreign config, matched as PEFT matches them and never for longer than a limit.

PEFT takes every key of ``rank_pattern`` and ``alpha_pattern`` for a regular expression (``get_pattern_key``
in peft/utils/other.py). A stranger's expression can run for ever, so expressions are run in a process of
their own that is stopped in time; plain names, which nearly all are, need none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from intruscope.errors import MalformedInput, UnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

TIME_LIMIT_SECONDS = 10.0  # for all expressions of a config together
# Without operators: only the dot means anything but itself.
_PLAIN = re.compile(r"[\w.-]*", re.ASCII)
_RUN = r"""
import json, re, sys
patterns, modules = json.load(sys.stdin)
found = []
for pattern in patterns:
    try:
        match = re.compile(rf"(.*\.)?({pattern})$").match
        found.append([index for index, module in enumerate(modules) if match(module)])
    except (re.error, OverflowError, RecursionError):
        found.append(None)
json.dump(found, sys.stdout)
"""


def first_matches(patterns: Iterable[str], modules: Sequence[str], *, file: Path | None) -> dict[str, str]:
    """For each module the first pattern that matches the end of its name, on a dot.

    Args:
        patterns: Regular expressions, in the order of the config.
        modules: Names of modules.
        file: The config, for errors.

    Returns:
        Module to pattern; modules that none matches are left out.

    Raises:
        MalformedInput: a pattern is no regular expression.
        UnsupportedFormat: the expressions did not finish in time.
    """
    ordered = list(dict.fromkeys(patterns))
    expressions = [pattern for pattern in ordered if not _PLAIN.fullmatch(pattern)]
    hits = _run(expressions, modules, file) if expressions and modules else {}
    found: dict[str, str] = {}
    for module in modules:
        for pattern in ordered:
            if module in hits[pattern] if pattern in hits else _ends_with(module, pattern):
                found[module] = pattern
                break
    return found


def _ends_with(module: str, plain: str) -> bool:
    """Whether PEFT's expression matches, for a pattern whose only operator is the dot."""
    start = len(module) - len(plain)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    end = module[start:]
    return end == plain or ("." in plain and all(p in (".", c) for p, c in zip(plain, end, strict=True)))


def _run(expressions: list[str], modules: Sequence[str], file: Path | None) -> dict[str, set[str]]:
    try:
        answer = subprocess.run(  # noqa: S603 - this interpreter, a constant program, data on its input
            [sys.executable, "-I", "-S", "-c", _RUN],
            input=json.dumps([expressions, list(modules)]).encode(),
            capture_output=True,
            timeout=TIME_LIMIT_SECONDS,
            check=True,
        ).stdout
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        what = f"did not finish in {TIME_LIMIT_SECONDS:g} s" if late else "could not be run"
        fact = f"{len(expressions)} regular expressions of the config {what}"
        remedy = "write the patterns as plain module names"
        raise UnsupportedFormat(fact, remedy=remedy, file=file, tensor=expressions[0]) from None
    hits: dict[str, set[str]] = {}
    for pattern, indices in zip(expressions, json.loads(answer), strict=True):
        if indices is None:
            fact = "a pattern in the config is not a valid regular expression"
            raise MalformedInput(fact, remedy="correct the config", file=file, tensor=pattern)
        hits[pattern] = {modules[index] for index in indices}
    return hits
