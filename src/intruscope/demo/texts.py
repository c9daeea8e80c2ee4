"""The texts of the demonstration: the standard library's source, and the language reference.

Both travel with Python itself, so they vary with its version: whoever reports a figure measured on
them names the version and the hash.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from intruscope.errors import MalformedInput

_LEFT_OUT = {
    "pydoc_data",
    "test",
    "tests",
    "idlelib",
    "site-packages",
    "lib2to3",
    "__pycache__",
    "turtledemo",
}
_HELD_OUT_ONE_IN = 25
_TRAIN_FRACTION = 0.85


@dataclass(frozen=True, kw_only=True)
class TextSplit:
    """A corpus cut in two by a fixed rule.

    Attributes:
        name: What the text is, for people.
        train, held_out: Documents; no document is in both.
        train_names, held_out_names: Where each came from.
        sha256: Of all documents in order, with their names.
    """

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    train_names: tuple[str, ...]
    held_out_names: tuple[str, ...]
    sha256: str


def library_source() -> TextSplit:
    """The Python standard library's source files, one in 25 held out by the hash of its path.

    ``pydoc_data`` (the fine-tuning text), the test suites and installed packages are left out.

    Raises:
        MalformedInput: this Python carries no source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(relative.parts):
            documents[relative.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    if len(documents) < 100:
        raise MalformedInput(
            f"found {len(documents)} source files of the standard library, expected several hundred",
            remedy="run the demonstration with a Python that ships its library as source",
            file=root,
        )
    held_out = {name for name in documents if _bucket(name) == 0}
    return _split("Python standard library source", documents, held_out)


def language_reference() -> TextSplit:
    """The topics of Python's own language reference, 85% of them for training.

    Raises:
        MalformedInput: this Python was stripped of ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise MalformedInput(
            "this Python has no pydoc_data.topics, the text that the demonstration fine-tunes on",
            remedy="run the demonstration with a complete Python installation",
        ) from error
    names = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = set(names[int(_TRAIN_FRACTION * len(names)) :])
    return _split("Python language reference", {name: topics[name] for name in sorted(topics)}, held_out)


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _HELD_OUT_ONE_IN


def _split(name: str, documents: dict[str, str], held_out: set[str]) -> TextSplit:
    digest = hashlib.sha256()
    for key, text in documents.items():
        digest.update(f"{key}\0{text}\0".encode())
    train = [key for key in documents if key not in held_out]
    kept = [key for key in documents if key in held_out]
    return TextSplit(
        name=name,
        train=tuple(documents[key] for key in train),
        held_out=tuple(documents[key] for key in kept),
        train_names=tuple(train),
        held_out_names=tuple(kept),
        sha256=digest.hexdigest(),
    )
