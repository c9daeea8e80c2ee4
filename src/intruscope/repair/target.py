"""The folder of a repaired model while it is filled: every file is hashed, and counted for the progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.weights.written import HashedFile, copy_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Target:
    """A folder that is being filled.

    Args:
        folder: Exists, and nobody else writes to it.
        total: Bytes that will be written, about.
        on_progress: Called with bytes written and bytes in all.

    Attributes:
        folder: The same.
        written: Name to ``bytes`` and ``sha256``.
    """

    def __init__(self, folder: Path, *, total: int, on_progress: Callable[[int, int], None]) -> None:
        self.folder = folder
        self.written: dict[str, dict[str, Any]] = {}
        self._total, self._done, self._on_progress = total, 0, on_progress

    def write(self, name: str, writer: Callable[[HashedFile], None]) -> None:
        """Write a new file; raises OSError where there is no room."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with HashedFile(path) as file:
            writer(file)
        self.written[name] = {"bytes": file.num_bytes, "sha256": file.sha256}
        self._done += file.num_bytes
        self._on_progress(min(self._done, self._total), self._total)

    def copy(self, source: Path, name: str) -> None:
        """Copy a file byte for byte; raises MalformedInput where it cannot be read."""
        self.write(name, lambda file: copy_file(file, source))
