"""The texts of the demonstration, carried by every Python: its library's source and language reference.

The source is split by a rule on each file's path, not by chance: the shipped model was trained elsewhere, and
a reader's Python must leave out the same files that the training left out.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

HELD_OUT_SHARE = 16  # one file in sixteen, by hash of its path, is never trained on
MIN_FILE_BYTES = 512  # smaller ones are empty packages and re-exports
REFERENCE_TRAIN_FRACTION = 0.85

# Neither trained on nor held out: installed packages, tests, generated tables, the language reference.
EXCLUDED_FOLDERS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "encodings",
        "pydoc_data",
        "_bundled",
        "__pycache__",
    }
)
_MIN_LIBRARY_FILES = 100
_MIN_REFERENCE_TOPICS = 20
_INSTALL_PYTHON = (
    "run this with a Python that carries it, such as a python.org build or your system's full python3"
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """One document: its name within its collection (a relative path, or a topic) and what it says."""

    name: str
    content: str


def is_held_out(relative_path: str) -> bool:
    """Whether a library file is left out of pre-training: a fixed rule on its path, the same in every Python.

    Args:
        relative_path: Path within the library, with forward slashes, such as ``json/decoder.py``.
    """
    return hashlib.sha256(relative_path.encode()).digest()[0] % HELD_OUT_SHARE == 0


def library_texts(*, held_out: bool, root: Path | None = None) -> tuple[Text, ...]:
    """Source files of the standard library, sorted by path: those trained on, or those held out.

    Args:
        held_out: Which of the two disjoint parts.
        root: The library's folder; that of the running Python if None.

    Raises:
        UsageError: this Python does not carry its library as source.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    names = sorted(name for name in _library_names(root))
    if len(names) < _MIN_LIBRARY_FILES:
        raise UsageError(
            f"this Python has only {len(names)} source files in its standard library, and the demonstration "
            "needs "
            f"{_MIN_LIBRARY_FILES}",
            remedy=_INSTALL_PYTHON,
            file=root,
        )
    chosen = (name for name in names if is_held_out(name) == held_out)
    return tuple(
        Text(name=name, content=(root / name).read_text(encoding="utf-8", errors="replace"))
        for name in chosen
    )


def _library_names(root: Path) -> Iterable[str]:
    """Relative paths of the files that belong to either part."""
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        machine_specific = relative.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
        configuration = relative.parts[0].startswith("config-")
        excluded = not EXCLUDED_FOLDERS.isdisjoint(relative.parts) or machine_specific or configuration
        if not excluded and path.is_file() and path.stat().st_size >= MIN_FILE_BYTES:
            yield relative.as_posix()


def language_reference(*, seed: int = 0) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """The chapters of the language reference that ``help()`` shows, split into train and test by chapter.

    Args:
        seed: Chooses which chapters are tested on.

    Returns:
        (train, test): disjoint, each sorted by name; 85% of the chapters train.

    Raises:
        UsageError: this Python was packaged without ``pydoc_data``.
    """
    try:
        topics: dict[str, str] = dict(importlib.import_module("pydoc_data.topics").topics)
    except ImportError:
        topics = {}
    if len(topics) < _MIN_REFERENCE_TOPICS:
        raise UsageError(
            f"this Python has only {len(topics)} chapters of the language reference (module "
            "pydoc_data.topics), and "
            f"the demonstration needs {_MIN_REFERENCE_TOPICS}",
            remedy=_INSTALL_PYTHON,
        )
    names = sorted(topics)
    random.Random(seed).shuffle(names)  # noqa: S311 - a split, not a secret
    num_train = round(REFERENCE_TRAIN_FRACTION * len(names))
    train, test = sorted(names[:num_train]), sorted(names[num_train:])
    return (
        tuple(Text(name=name, content=topics[name]) for name in train),
        tuple(Text(name=name, content=topics[name]) for name in test),
    )


def digest(texts: Iterable[Text]) -> str:
    """SHA-256 over names and contents, so that a figure can name exactly the text it was measured on."""
    state = hashlib.sha256()
    for text in texts:
        for part in (text.name, text.content):
            data = part.encode("utf-8", "surrogatepass")
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
    return state.hexdigest()
