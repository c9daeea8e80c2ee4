"""Models as people name them: a path, ``org/name@revision``, or ``base+adapter``; and matrices by pattern.

An existing path always wins over ``@`` and ``+``.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,255}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """One model, possibly with an adapter on top.

    Attributes:
        given: As the user wrote it, adapter included.
        path: Where the model lies, when it is local.
        hub_id: Otherwise its id on the hub.
        revision: Branch, tag or commit on the hub, None for the default.
        adapter: What follows ``+``.
    """

    given: str
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    adapter: ModelName | None = None


def parse_name(given: str) -> ModelName:
    """Read a model's name. Looks at the file system, never at the network.

    Raises:
        UsageError: neither an existing path nor of the form of a hub id.
    """
    if _exists(given):
        return ModelName(given=given, path=Path(given))
    splits = [at for at, character in enumerate(given) if character == "+" and 0 < at < len(given) - 1]
    if splits:
        # A plus may be part of a folder's name: prefer the split that names the most existing paths.
        at = max(splits, key=lambda at: _exists(given[:at]) + _exists(given[at + 1 :]))
        base = parse_name(given[:at])
        return ModelName(
            given=given,
            path=base.path,
            hub_id=base.hub_id,
            revision=base.revision,
            adapter=parse_name(given[at + 1 :]),
        )
    hub_id, at_sign, revision = given.partition("@")
    if not _HUB_ID.fullmatch(hub_id) or (at_sign and not _REVISION.fullmatch(revision)) or ".." in given:
        raise UsageError(
            f"got the name '{printable(given)}', expected an existing path or an id like org/name@revision",
            remedy="check the path, or the spelling of the id",
        )
    return ModelName(given=given, hub_id=hub_id, revision=revision or None)


def _exists(text: str) -> bool:
    # os.path.exists answers False, where Path.exists raises, for NULs and overlong names.
    return bool(text) and os.path.exists(text)  # noqa: PTH110


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern selects.

    Args:
        pattern: A name, with ``*`` as a wildcard. Brackets stand for themselves (``c_attn[q]``).
        names: All names.

    Raises:
        UsageError: it selects none of them.
    """
    expression = re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
    found = [name for name in names if expression.fullmatch(name)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        raise UsageError(
            f"'{printable(pattern)}' is not the name of a matrix that the fine-tune changed",
            remedy=f"did you mean {printable(near[0])}?" if near else "the fine-tune changed none",
        )
    return found
