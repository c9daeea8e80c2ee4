"""Outputs that appear whole or not at all, and never over an input."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import IntruscopeError, OutputConflict, ResourceExhausted, readable_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


_SUFFIX = ".tmp"
_MARK = "intruscope.lock"
"""In each unfinished folder: says who fills it, and is locked while they do."""


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is an input, lies inside one, or is a hard link to one of its files.

    Args:
        output: File or folder to be written.
        inputs: Files and folders that are read.

    Raises:
        OutputConflict: it would overwrite an input, or its parent folder does not exist.
    """
    target = output.resolve()
    if not target.parent.is_dir():
        fact = f"the folder {target.parent} does not exist"
        raise OutputConflict(fact, remedy="create it first", file=output)
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
                f"this output {how} the input {source}",
                remedy="choose another output",
                file=output,
            )


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def check_new_folder(output: Path) -> None:
    """Refuse an output folder that is not empty.

    Raises:
        OutputConflict: it is not empty, or not a folder.
    """
    if output.is_dir() and not output.is_symlink():
        if any(output.iterdir()):
            fact = "the output folder is not empty"
            raise OutputConflict(fact, remedy="choose another output, or empty it first", file=output)
    elif os.path.lexists(output):
        fact = "this is a file, not a new or empty folder"
        raise OutputConflict(fact, remedy="choose another output", file=output)


def check_room(out: Path, num_bytes: int) -> None:
    """Check the free space before anything is written, once what killed runs left there is removed.

    Args:
        out: Folder to be written; its parent exists.
        num_bytes: Approximate size of the output.

    Raises:
        ResourceExhausted: there is less free space.
    """
    _remove_unfinished(out)
    free = shutil.disk_usage(out.parent).free
    if free < num_bytes:
        raise ResourceExhausted(
            f"the output needs about {readable_bytes(num_bytes)}; {readable_bytes(free)} are free there",
            remedy="free some space or choose another place",
            file=out,
        )


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: filled beside its target, flushed, renamed into place.

    What a killed run left unfinished beside the same target is removed first.

    Yields:
        The folder to fill.

    Raises:
        ResourceExhausted: the disk is full or fails; nothing is left behind.
        OutputConflict: the target is no longer empty, or its parent is not writable.
    """
    with contextlib.ExitStack() as undo:
        try:
            check_new_folder(target)
            target = target.resolve()  # "." has no name and no other parent
            _remove_unfinished(target)
            prefix = _prefix(target)
            temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=target.parent))
            undo.callback(shutil.rmtree, temporary, ignore_errors=True)
            undo.callback(os.close, _mark(temporary))
            content = temporary / "content"
            content.mkdir()
            yield content
            for folder, _, names in os.walk(content):
                for name in names:
                    _sync(Path(folder, name))
                _sync_folder(Path(folder))
            content.rename(target)  # the kernel refuses if another run was first
            _sync_folder(target.parent)
        except IntruscopeError:
            raise
        except OSError as error:
            raise _not_written(error, target) from error


def _prefix(target: Path) -> str:
    return f".{target.name[:100]}."


def _who() -> bytes:
    """Locks are only trusted on the machine that took them."""
    return f"intruscope on {socket.gethostname()}\n".encode()


def _mark(temporary: Path) -> int:
    """Claim an unfinished folder for the life of this process; returns the descriptor that holds the lock."""
    descriptor = os.open(temporary / _MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, _who())  # last: a folder without it is nobody's to remove
    return descriptor


def _remove_unfinished(target: Path) -> None:
    """Remove what killed runs left beside a target: only folders that carry our mark, which nobody holds."""
    target = target.resolve()
    try:
        beside = [target.parent / name for name in os.listdir(target.parent)]  # noqa: PTH208 - may be refused
    except OSError:
        return
    for found in beside:
        if not (found.name.startswith(_prefix(target)) and found.name.endswith(_SUFFIX)):
            continue
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(found / _MARK, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process is gone, or this fails
                if not found.is_symlink() and os.read(descriptor, 1000) == _who():
                    shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(descriptor)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(error: OSError, path: Path) -> IntruscopeError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        fact = "another run has written this folder in the meantime"
        return OutputConflict(fact, remedy="choose another output", file=path)
    if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        fact = f"the output could not be written ({error.strerror})"
        return OutputConflict(fact, remedy="choose a folder that exists and is writable", file=path)
    fact = f"the output could not be written ({error.strerror}); an earlier file there is untouched"
    return ResourceExhausted(fact, remedy="free some space or choose another place", file=path)


def json_text(data: Mapping[str, Any]) -> str:
    """Plain data as indented ASCII JSON, ending with a newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(data, allow_nan=False, indent=1) + "\n"


def write_json_file(data: Mapping[str, Any], path: Path) -> None:
    """Write plain data as JSON, whole or not at all.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`write_atomically`.
        ValueError: a number is NaN or infinite.
    """
    encoded = json_text(data).encode("ascii")

    def write(stream: IO[bytes]) -> None:
        stream.write(encoded)

    write_atomically(path, write)


def write_atomically(path: Path, writer: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside its target, flush it to disk, and rename it into place.

    A link is followed. A device or a pipe (``/dev/stdout``, ``/dev/full``) is written to, never replaced.

    Args:
        path: The target; its folder must exist.
        writer: Called once with a binary stream that can be written and sought.

    Raises:
        ResourceExhausted: the disk is full or fails; the target is unchanged.
        OutputConflict: the target is a folder, or its folder is not writable.
    """
    if path.is_dir():
        raise OutputConflict("this is a folder, not a file", remedy="give a file name", file=path)
    if path.exists() and not path.is_file():
        _write_special(path, writer)
        return
    path = path.resolve()
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


def _write_special(path: Path, writer: Callable[[IO[bytes]], None]) -> None:
    content = io.BytesIO()  # Parquet and NumPy archives are written with seeks
    writer(content)
    try:
        # Never created: a device that went away must not leave a file in its place.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            view = content.getbuffer()
            while view:
                view = view[stream.write(view) :]
    except BrokenPipeError:
        pass  # a reader that has left is no error, as on standard output
    except OSError as error:
        raise _not_written(error, path) from error


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
