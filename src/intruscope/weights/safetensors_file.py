"""The header of a safetensors file, read with suspicion: nothing is allocated before it is proved to fit.

Format: 8 bytes little-endian header length N, N bytes of JSON ``{name: {dtype, shape, data_offsets}}``,
then the data without holes (huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, printable
from intruscope.weights.stored import DTYPE_BITS, FileStamp, FileTensor, open_regular, read_exactly
from intruscope.weights.strict_json import parse_json_object

if TYPE_CHECKING:
    from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_AXES = 64
_AGAIN = "download or export the file again"
# First bytes of what people find under this name instead, lower case.
_IMPOSTORS = (
    (b"version https://git-lfs", "a git-LFS pointer, not the weights", "run git lfs pull in that folder"),
    (b"<!doctype", "an HTML page (an error or login page was saved)", _AGAIN),
    (b"<html", "an HTML page (an error or login page was saved)", _AGAIN),
    (b"pk\x03\x04", "a zip archive (a PyTorch pickle, perhaps)", "convert it to safetensors"),
    (b"gguf", "a GGUF file", "give the safetensors model it was made from"),
    (b"\x89hdf", "an HDF5 file", "convert it to safetensors"),
    (b"\x80\x02", "a legacy pickle", "convert it to safetensors"),
    (b"\x80\x04", "a legacy pickle", "convert it to safetensors"),
)


def read_header(path: Path) -> dict[str, FileTensor]:
    """List the tensors of one safetensors file without reading any of them.

    Returns:
        Name to record, in the order of the data.

    Raises:
        MalformedInput: everything that is not exactly a safetensors file, the reason named.
    """
    entries, _, length, stamp = _read_entries(path)
    tensors = [_tensor(name, entry, 8 + length, stamp, path) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    _check_cover(tensors, 8 + length, stamp.num_bytes, path)
    return {tensor.name: tensor for tensor in tensors}


def read_metadata(path: Path) -> dict[str, str]:
    """The free text of a safetensors file (``format: pt`` and the like).

    Raises:
        MalformedInput: as :func:`read_header`, as far as the header's form goes.
    """
    return _read_entries(path)[1]


def _read_entries(path: Path) -> tuple[dict[str, Any], dict[str, str], int, FileStamp]:
    """The header's entries, its metadata, its length in bytes, and the file's stamp."""
    with open_regular(path) as (descriptor, stamp):
        _refuse_impostors(bytes(read_exactly(descriptor, 0, min(32, stamp.num_bytes), path=path)), path)
        length = _header_length(descriptor, stamp, path)
        text = bytes(read_exactly(descriptor, 8, length, path=path))
    if not text.startswith(b"{"):
        fact = f"got a header that begins with {text[:1]!r}, expected an opening brace"
        raise _malformed(fact, path)
    entries = parse_json_object(text, file=path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed("got metadata that is not a map of strings, expected text only", path)
    return entries, metadata, length, stamp


def _malformed(fact: str, path: Path, tensor: str | None = None, remedy: str = _AGAIN) -> MalformedInput:
    return MalformedInput(fact, remedy=remedy, file=path, tensor=tensor)


def _refuse_impostors(start: bytes, path: Path) -> None:
    # A header shorter than 16 MiB has zeros in bytes 3 to 7, which no impostor has.
    if start[3:8] == bytes(5):
        return
    lower = start.lower().lstrip(b" \r\n\t\xef\xbb\xbf")
    for magic, what, remedy in _IMPOSTORS:
        if lower.startswith(magic):
            raise _malformed(f"got {what}, expected safetensors", path, remedy=remedy)


def _header_length(descriptor: int, stamp: FileStamp, path: Path) -> int:
    if stamp.num_bytes < 8:
        fact = f"got {stamp.num_bytes} bytes, expected at least 8 for the header's length"
        raise _malformed(fact, path)
    (length,) = struct.unpack("<Q", read_exactly(descriptor, 0, 8, path=path))
    if length > _MAX_HEADER_BYTES:
        fact = f"got a header length of {length} bytes, expected at most {_MAX_HEADER_BYTES}"
        raise _malformed(fact, path)
    if 8 + length > stamp.num_bytes:
        fact = f"got a file of {stamp.num_bytes} bytes, expected at least {8 + length}: its header is cut off"
        raise _malformed(fact, path)
    return int(length)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(name: str, entry: Any, start: int, stamp: FileStamp, path: Path) -> FileTensor:
    """Check one entry by itself; whether the entries fit together is checked over all of them."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fact = "got an entry of other fields, expected exactly dtype, shape and data_offsets"
        raise _malformed(fact, path, name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        fact = f"got the dtype {printable(dtype)}, expected one that safetensors defines"
        raise _malformed(fact, path, name)
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or not all(map(_is_count, shape)):
        fact = f"got the shape {printable(shape)}, expected at most {_MAX_AXES} non-negative integers"
        raise _malformed(fact, path, name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        fact = f"got the data_offsets {printable(offsets)}, expected [begin, end]"
        raise _malformed(fact, path, name)
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        # Checked at every step: a zero further on would hide an overflow from the whole product.
        if bits >= 2**66:
            fact = f"got the shape {printable(shape)}, expected one whose bytes fit 63 bits"
            raise _malformed(fact, path, name)
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        fact = f"got {end - begin} bytes for shape {printable(shape)} of {dtype}, expected {bits / 8:g}"
        raise _malformed(fact, path, name)
    return FileTensor(
        name=name,
        path=path,
        dtype=dtype,
        shape=tuple(shape),
        offset=start + begin,
        stamp=stamp,
    )


def _check_cover(tensors: list[FileTensor], start: int, file_bytes: int, path: Path) -> None:
    """The data must be covered exactly once, or two readers could see two different models."""
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            what = "an overlap" if tensor.offset < position else "a hole"
            fact = f"got {what} at byte {min(tensor.offset, position)}, expected data without gaps"
            raise _malformed(fact, path, tensor.name)
        position += tensor.num_bytes
    if position > file_bytes:
        unfinished = path.name.endswith(".incomplete") or path.resolve().name.endswith(".incomplete")
        what = "a download that has not finished" if unfinished else "the file is cut off"
        raise _malformed(f"got {file_bytes} bytes, expected {position}: {what}", path)
    if position < file_bytes:
        fact = f"got {file_bytes} bytes, expected {position}: {file_bytes - position} bytes after the data"
        raise _malformed(fact, path)
