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
        path: Location of a local model.
        hub_id: Id on the hub of any other.
        revision: Branch, tag or commit on the hub; None for the default.
        adapter: The part after ``+``.
    """

    given: str
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    adapter: ModelName | None = None


def parse_name(given: str | Path) -> ModelName:
    """Parse a model name. Looks at the file system, never at the network.

    Args:
        given: A path, a hub id or ``base+adapter``; a ``Path`` is never taken for a hub id.

    Raises:
        UsageError: no file or folder has this name, and it is a path or not a valid hub id.
    """
    text = os.fspath(given)
    if _exists(text):
        return ModelName(given=text, path=Path(text))
    if isinstance(given, Path):
        raise _no_such_path(text)
    splits = [at for at, character in enumerate(text) if character == "+" and 0 < at < len(text) - 1]
    if splits:
        # A plus may be part of a folder's name: prefer the split with the most existing paths.
        at = max(splits, key=lambda at: _exists(text[:at]) + _exists(text[at + 1 :]))
        base = parse_name(text[:at])
        return ModelName(
            given=text,
            path=base.path,
            hub_id=base.hub_id,
            revision=base.revision,
            adapter=parse_name(text[at + 1 :]),
        )
    hub_id, at_sign, revision = text.partition("@")
    if _is_path(text):
        raise _no_such_path(text)
    if not _HUB_ID.fullmatch(hub_id) or (at_sign and not _REVISION.fullmatch(revision)) or ".." in text:
        raise UsageError(
            f"no file or folder is named '{printable(text)}', and it is not a valid hub id",
            remedy="check the path, or write the id as org/name@revision",
        )
    return ModelName(given=text, hub_id=hub_id, revision=revision or None)


def _is_path(text: str) -> bool:
    """Whether a name can only mean a path, or the folder that it begins with is here."""
    num_separators = text.partition("@")[0].count(os.sep)
    if text.startswith((".", "~", os.sep)) or text.endswith(os.sep) or num_separators > 1:
        return True
    folder, separator, _ = text.partition(os.sep)
    return bool(separator) and "@" not in text and os.path.isdir(folder)  # noqa: PTH112 - takes any string


def _no_such_path(text: str) -> UsageError:
    folder, name = os.path.split(text.rstrip(os.sep))
    try:
        near = difflib.get_close_matches(name, os.listdir(folder or os.curdir), n=1)  # noqa: PTH208 - any string
    except (OSError, ValueError):
        near = []
    remedy = "check the path"
    if near:
        remedy = f"did you mean {printable(os.path.join(folder, near[0]))}?"  # noqa: PTH118 - as it was written
    if _HUB_ID.fullmatch(text):
        remedy += f" (for the model of that name on the hub, write {text}@main)"
    return UsageError(f"no such file or folder: {printable(text)}", remedy=remedy)


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


def last_part(name: str) -> str:
    """The last part of a model's name, without its revision, by which a folder and a hub id can agree.

    Args:
        name: A path or ``org/name@revision``.
    """
    return name.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
