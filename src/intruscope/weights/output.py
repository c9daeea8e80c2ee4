"""Outputs that appear whole or not at all, and never over an input."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import IntruscopeError, OutputConflict, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is an input, lies inside one, or is a hard link to one of its files.

    Args:
        output: File or folder to be written.
        inputs: Files and folders that are read.

    Raises:
        OutputConflict: it is, or a folder stands where the file should go, or its parent does not exist.
    """
    target = output.resolve()
    if not target.parent.is_dir():
        fact = f"got the folder {target.parent}, which does not exist, expected an existing one"
        raise OutputConflict(fact, remedy="create the folder first", file=output)
    for given in inputs:
        source = given.resolve()
        if source.is_dir():
            files = [entry for entry in source.rglob("*") if entry.is_file()]
            inside = target.is_relative_to(source)
        else:
            files, inside = [source], target == source
        linked = target.is_file() and any(_same_file(target, file) for file in files)
        if inside or linked:
            how = "lies in" if inside else "is a hard link into"
            raise OutputConflict(
                f"got an output that {how} the input {source}, expected a place outside the models",
                remedy="choose another output",
                file=output,
            )


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def check_new_folder(output: Path) -> None:
    """Refuse a folder for output that holds something already.

    Raises:
        OutputConflict: it is not empty, or no folder.
    """
    if output.is_dir() and not output.is_symlink():
        if any(output.iterdir()):
            fact = "got a folder that is not empty, expected a new or empty one"
            raise OutputConflict(fact, remedy="choose another output, or empty it first", file=output)
    elif os.path.lexists(output):
        fact = "got a file, expected a new or empty folder"
        raise OutputConflict(fact, remedy="choose another output", file=output)


def check_room(out: Path, num_bytes: int) -> None:
    """Refuse before anything is written where it will not fit.

    Args:
        out: Folder to be written; its parent exists.
        num_bytes: How much, about.

    Raises:
        ResourceExhausted: less is free there.
    """
    free = shutil.disk_usage(out.parent).free
    if free < num_bytes:
        raise ResourceExhausted(
            f"needs about {num_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free there",
            remedy="free some space or choose another place",
            file=out,
        )


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: filled beside its target, flushed, renamed into place.

    Yields:
        The folder to fill.

    Raises:
        ResourceExhausted: the disk is full or refuses; nothing is left behind.
        OutputConflict: the target holds something by now, or its parent may not be written.
    """
    temporary: Path | None = None
    try:
        check_new_folder(target)
        target = target.resolve()  # "." has no name and no other parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())  # mkdtemp leaves 0700
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        temporary.rename(target)  # refused by the kernel where another run was first
        temporary = None
        _sync_folder(target.parent)
    except IntruscopeError:
        raise
    except OSError as error:
        raise _not_written(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(error: OSError, path: Path) -> IntruscopeError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        fact = "another run wrote there in the meantime, expected a new or empty folder"
        return OutputConflict(fact, remedy="choose another output", file=path)
    if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        fact = f"could not be written ({error.strerror}), expected a folder that exists and may be written"
        return OutputConflict(fact, remedy="choose another output", file=path)
    fact = f"could not be written ({error.strerror}), expected room; what was there before is untouched"
    return ResourceExhausted(fact, remedy="free some space or choose another place", file=path)


def json_text(data: Mapping[str, Any]) -> str:
    """Plain data as indented ASCII, with a line's end.

    Raises:
        ValueError: a figure is NaN or infinite.
    """
    return json.dumps(data, allow_nan=False, indent=1) + "\n"


def write_json_file(data: Mapping[str, Any], path: Path) -> None:
    """Write plain data as JSON, whole or not at all.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`write_atomically`.
        ValueError: a figure is NaN or infinite.
    """
    encoded = json_text(data).encode("ascii")

    def write(stream: IO[bytes]) -> None:
        stream.write(encoded)

    write_atomically(path, write)


def write_atomically(path: Path, writer: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside its target, flush it to disk, and rename it into place.

    Args:
        path: The target; its folder must exist.
        writer: Called once with the open temporary file.

    Raises:
        ResourceExhausted: the disk is full or refuses; the target is as it was.
        OutputConflict: the target is a folder, or its folder may not be written.
    """
    if path.is_dir():
        fact = "got a folder, expected the name of a file to write"
        raise OutputConflict(fact, remedy="give a file name", file=path)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            writer(stream)
            stream.flush()
            os.fchmod(stream.fileno(), 0o666 & ~_umask())  # mkstemp leaves 0600
            os.fsync(stream.fileno())
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except IntruscopeError:
        raise
    except OSError as error:
        raise _not_written(error, path) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
