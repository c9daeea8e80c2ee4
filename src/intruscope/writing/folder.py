"""An output folder: claimed, filled, verified, and complete once its manifest is in it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, printable
from intruscope.progress import OnProgress, Progress
from intruscope.weights.companions import Companions, companions
from intruscope.weights.output import check_output, check_room, json_text, whole_folder
from intruscope.weights.written import HashedFile, copy_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.source import ModelSource

README = "README.md"


class OutputFolder:
    """A folder that is being filled. Every file is hashed and counted.

    Args:
        path: Exists, and nobody else writes to it.
        num_bytes: Expected size of everything that will be written.
        on_progress: Called after every file, in bytes; the expected size is the total.

    Attributes:
        path: The same.
        written: File name to ``bytes`` and ``sha256``.
    """

    def __init__(self, path: Path, *, num_bytes: int, on_progress: OnProgress) -> None:
        self.path = path
        self.written: dict[str, dict[str, Any]] = {}
        self._total, self._done, self._on_progress = num_bytes, 0, on_progress

    def write(self, name: str, content: Callable[[HashedFile], None] | bytes) -> None:
        """Write a new file; raises OSError if there is no room."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with HashedFile(path) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
        self.written[name] = {"bytes": file.num_bytes, "sha256": file.sha256}
        self._done += file.num_bytes
        self._report(min(self._done, self._total), name)

    def copy(self, source: Path, name: str) -> None:
        """Copy a file byte for byte; raises MalformedInput if it cannot be read."""
        self.write(name, lambda file: copy_file(file, source))

    def copy_companions(
        self, home: Path | None, weights: list[Path], *, single: str | None, skip: Collection[str]
    ) -> tuple[str, ...]:
        """Copy what belongs to a model besides its weights: configs, tokenizer, licence, README.

        Args:
            home: Folder of the model; None for a model in memory, which has none.
            weights: Its weight files, which are not copied.
            single: Where the model is one file, the only companion to copy: the rest of that folder may be
                anything. None where the folder is the model's own.
            skip: Names not to copy.

        Returns:
            Names of the files that do not belong to the model and were left out.
        """
        if home is None:
            return ()
        if single is None:
            found = companions(home, weights=frozenset(file.name for file in weights))
        else:
            found = Companions((Path(single),) if (home / single).is_file() else (), ())
        for relative in map(str, found.files):
            if relative not in {*self.written, *skip}:
                self.copy(home / relative, relative)
        return found.left_out

    def finish(self, manifest: str, record: Mapping[str, Any], **more: Any) -> None:
        """Write the manifest. A folder without one is incomplete.

        Args:
            manifest: Its name.
            record: What it says about the run.
            more: Further entries, written after the list of files.
        """
        text = json_text({**record, "files": dict(sorted(self.written.items())), **more})
        (self.path / manifest).write_bytes(text.encode("ascii"))
        self._report(self._total, manifest)

    def _report(self, num_bytes: int, name: str) -> None:
        self._on_progress(
            Progress(stage="writing", done=num_bytes, total=self._total, unit="bytes", item=name)
        )


@contextmanager
def output_folder(
    out: Path,
    sources: Collection[ModelSource | AdapterSource],
    *,
    num_bytes: int,
    on_progress: OnProgress,
) -> Iterator[OutputFolder]:
    """Claim a folder; it appears under its name when the block ends without an error, and not before.

    Args:
        out: A new or empty folder.
        sources: Models that are read. The folder must lie outside of them.
        num_bytes: Expected size of the output.
        on_progress: Called after every file, in bytes; the expected size is the total.

    Raises:
        OutputConflict: the folder holds something, or lies in an input.
        ResourceExhausted: there is not enough room; nothing is left behind.
    """
    named = [Path(source.name) for source in sources if Path(source.name).is_dir()]
    files = [Path(str(record["path"])) for source in sources for record in source.inputs]
    check_output(out, [*named, *files])
    check_room(out, num_bytes)
    with whole_folder(out) as path:
        yield OutputFolder(path, num_bytes=num_bytes, on_progress=on_progress)


def damaged(name: str) -> MalformedInput:
    """The error for a file that does not hold what was written to it."""
    return MalformedInput(
        "the file was written but reads back differently", remedy="check the disk and run again", file=name
    )


def shown_name(name: str) -> str:
    """A model's name for a model card: without the local folders."""
    return quoted(Path(name).name)


def quoted(text: str) -> str:
    """Foreign text that goes between backticks."""
    return printable(text).replace("`", "'")
