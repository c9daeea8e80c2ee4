"""Named tensors behind one interface, tensors in files, and the only code that opens an input.

Files are opened read-only, never mapped: a map whose file shrinks kills the process, a read that falls
short is an error with a name. Each tensor carries the stamp its file had at planning, so that a file
replaced or cut in the middle of a scan is noticed before and after every read.
"""

from __future__ import annotations

import math
import os
import stat
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from intruscope.errors import MalformedInput, ResourceExhausted, UnsupportedFormat, readable_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

# Bits per element, by the name that safetensors gives the dtype.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_PACKED_NAMES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_PIECE_BYTES = 16 << 20
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTEGER_NAMES = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """What a file looked like at planning: bytes, time of last change (ns), inode."""

    num_bytes: int
    mtime_ns: int
    inode: int


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, FileStamp]]:
    """Open a regular file read-only and yield its descriptor and stamp.

    Raises:
        MalformedInput: the path does not exist, may not be read, or is a folder, FIFO, socket or device
            (none of which is opened, so that nothing can block).
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - Path.stat hides embedded NULs as another error
        if not stat.S_ISREG(mode):
            kind = next(
                (name for test, name in _FILE_KINDS if test(mode)),
                "special file",
            )
            fact = f"this is a {kind}, not a regular file"
            raise MalformedInput(fact, remedy="give the weights as ordinary files", file=path)
        # O_NONBLOCK: the path may have become a FIFO since the line above.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        if isinstance(error, MalformedInput):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        fact = f"the file could not be opened ({reason})"
        raise MalformedInput(fact, remedy="check the path and its permissions", file=path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            fact = "the file was replaced by a special file"
            raise MalformedInput(fact, remedy="give the weights as ordinary files", file=path)
        yield (
            descriptor,
            FileStamp(num_bytes=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino),
        )
    finally:
        os.close(descriptor)


_FILE_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
)


def read_exactly(descriptor: int, offset: int, num_bytes: int, *, path: Path) -> bytearray:
    """Read ``num_bytes`` from ``offset`` into a fresh buffer.

    Raises:
        MalformedInput: the file ends before, or the disk fails.
        ResourceExhausted: there is not enough memory.
    """
    try:
        buffer = bytearray(num_bytes)
    except (MemoryError, OverflowError) as error:
        fact = f"out of memory: could not allocate {readable_bytes(num_bytes)}"
        remedy = "lower --workers, or use a machine with more memory"
        raise ResourceExhausted(fact, remedy=remedy, file=path) from error
    view = memoryview(buffer)
    done = 0
    while done < num_bytes:
        try:
            num_read = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            fact = f"the file could not be read at byte {offset + done} ({error.strerror})"
            raise MalformedInput(fact, remedy="check the disk and copy the file again", file=path) from None
        if num_read == 0:
            fact = f"the file has shrunk: only {done} of {num_bytes} bytes can be read from offset {offset}"
            raise MalformedInput(fact, remedy=_CHANGED_REMEDY, file=path)
        done += num_read
    return buffer


_CHANGED_REMEDY = "leave the inputs alone while they are scanned, then run the scan again"


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, by name.

    Raises:
        MalformedInput: it may not be read, or is gone.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        fact = f"the folder could not be listed ({error.strerror})"
        raise MalformedInput(fact, remedy="check its permissions", file=folder) from None


def read_whole_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a small file entirely.

    Raises:
        MalformedInput: larger than ``max_bytes``, not a regular file, or not readable.
    """
    with open_regular(path) as (descriptor, stamp):
        if stamp.num_bytes > max_bytes:
            fact = f"the file has {stamp.num_bytes} bytes; at most {max_bytes} are read"
            raise MalformedInput(fact, remedy="check that this is the right file", file=path)
        return bytes(read_exactly(descriptor, 0, stamp.num_bytes, path=path))


@dataclass(frozen=True, kw_only=True)
class StoredTensor(ABC):
    """One named tensor of a source, known before its numbers are read. Picklable; loads no torch until read.

    Every place that can hold weights (a file, a model in memory, a packed format) is one subclass. Whoever
    reads a model sees this interface alone.

    Attributes:
        name: As the source spells it; foreign text, never part of a path.
        path: The file that holds the numbers; None for a tensor in memory.
        dtype: safetensors' name: ``F32``, ``BF16`` ...
        shape: As stored.
    """

    name: str
    path: Path | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Length of the data."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def decodable(self) -> bool:
        """Whether these are weights as they stand: float64, float32, float16 or bfloat16."""
        return self.dtype in TORCH_NAMES

    @property
    def is_integer(self) -> bool:
        """Whether it holds plain integers, such as the places of sparse parameters."""
        return self.dtype in INTEGER_NAMES

    def leading(self, count: int) -> Self:
        """The first ``count`` slices of the first axis, as a tensor of its own (a resized vocabulary)."""
        return replace(self, shape=(count, *self.shape[1:]))

    def read(self) -> torch.Tensor:
        """Read the whole tensor in its stored dtype and shape: a copy on the CPU.

        Raises:
            MalformedInput: as :meth:`read_leading`.
        """
        return self.read_leading(0, self.shape[0] if self.shape else 1).reshape(self.shape)

    @abstractmethod
    def read_leading(self, first: int, count: int) -> torch.Tensor:
        """Read ``count`` slices of the first axis, from ``first``: (count, ...) in the stored dtype.

        Only these are read, so that one expert of a fused tensor costs one expert's memory.

        Raises:
            MalformedInput: the file changed since planning, or the dtype cannot be decoded alone.
        """

    def read_packed(self, first: int, count: int) -> torch.Tensor:  # noqa: ARG002 - for subclasses
        """The same of numbers that need a scale: float8 as it is stored. For number formats alone.

        Raises:
            UnsupportedFormat: this place holds no packed numbers.
            MalformedInput: as :meth:`read_leading`.
        """
        raise UnsupportedFormat(
            f"{self.dtype} numbers cannot be read here",
            remedy="save the model as safetensors",
            file=self.path,
            tensor=self.name,
        )

    @abstractmethod
    def raw(self) -> Iterator[bytearray]:
        """The bytes as safetensors stores them, a piece at a time, whatever the dtype.

        Raises:
            MalformedInput: the file changed since planning.
        """


@dataclass(frozen=True, kw_only=True)
class FileTensor(StoredTensor):
    """A tensor that lies in one piece in a file.

    Attributes:
        path: The file.
        offset: Of the first byte, from the start of the file.
        stamp: Of the file at planning.
    """

    path: Path
    offset: int
    stamp: FileStamp

    def read_leading(self, first: int, count: int) -> torch.Tensor:
        """Read some slices; see :class:`StoredTensor`.

        Raises:
            MalformedInput: the file was replaced, changed or cut since planning, or the dtype is not one
                that can be decoded alone.
        """
        import torch

        if not self.decodable and not self.is_integer:
            raise MalformedInput(
                f"the dtype is {self.dtype}; F64, F32, F16 and BF16 can be read",
                remedy="convert the model to bfloat16 first",
                file=self.path,
                tensor=self.name,
            )
        return self._slices(first, count, getattr(torch, {**TORCH_NAMES, **INTEGER_NAMES}[self.dtype]))

    def read_packed(self, first: int, count: int) -> torch.Tensor:
        """Read some slices of float8 numbers; see :class:`StoredTensor`."""
        import torch

        return self._slices(first, count, getattr(torch, _PACKED_NAMES[self.dtype]))

    def _slices(self, first: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        import torch

        inner = self.shape[1:]
        slice_bytes = math.prod(inner) * DTYPE_BITS[self.dtype] // 8
        with open_regular(self.path) as (descriptor, stamp):
            self._check_stamp(stamp)
            data = read_exactly(
                descriptor, self.offset + first * slice_bytes, count * slice_bytes, path=self.path
            )
        with open_regular(self.path) as (_, stamp):
            self._check_stamp(stamp)
        if not data:  # torch.frombuffer refuses an empty buffer
            return torch.empty((count, *inner), dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).reshape(count, *inner)

    def raw(self) -> Iterator[bytearray]:
        """The bytes as they lie in the file; see :class:`StoredTensor`.

        Raises:
            MalformedInput: the file was replaced, changed or cut since planning.
        """
        yield from read_pieces(self.path, self.offset, self.num_bytes, stamp=self.stamp, tensor=self.name)

    def _check_stamp(self, stamp: FileStamp) -> None:
        check_unchanged(self.path, self.stamp, stamp, tensor=self.name)


def input_record(file: Path, stamp: FileStamp | None = None) -> dict[str, object]:
    """What a plan keeps of an input file, so that another version of it is noticed.

    Args:
        file: The file.
        stamp: Where it is known already.

    Raises:
        MalformedInput: it is not a regular file, or may not be read.
    """
    if stamp is None:
        with open_regular(file) as (_, stamp):
            pass
    return {
        "path": str(file),
        "bytes": stamp.num_bytes,
        "mtime_ns": stamp.mtime_ns,
        "inode": stamp.inode,
    }


def read_pieces(
    path: Path, offset: int, num_bytes: int, *, stamp: FileStamp, tensor: str | None = None
) -> Iterator[bytearray]:
    """Read part of a file in pieces of a few MiB.

    Args:
        path: The file.
        offset: Where to begin.
        num_bytes: How much.
        stamp: Of the file at planning.
        tensor: For errors.

    Raises:
        MalformedInput: the file was replaced, changed or cut since planning.
    """
    with open_regular(path) as (descriptor, found):
        check_unchanged(path, stamp, found, tensor=tensor)
        for start in range(offset, offset + num_bytes, _PIECE_BYTES):
            length = min(_PIECE_BYTES, offset + num_bytes - start)
            yield read_exactly(descriptor, start, length, path=path)
    with open_regular(path) as (_, found):
        check_unchanged(path, stamp, found, tensor=tensor)


def check_unchanged(path: Path, planned: FileStamp, found: FileStamp, *, tensor: str | None = None) -> None:
    """Refuse a file that is not the one that was planned with.

    Raises:
        MalformedInput: it was replaced, changed or cut.
    """
    if found != planned:
        what = "size" if found.num_bytes != planned.num_bytes else "content or identity"
        fact = (
            f"the file changed its {what} since the scan was planned ({found.num_bytes} bytes now, "
            f"{planned.num_bytes} before)"
        )
        raise MalformedInput(fact, remedy=_CHANGED_REMEDY, file=path, tensor=tensor)
