"""The header of a safetensors file, which is untrusted: nothing is allocated before it is known to fit.

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
# First bytes, in lower case, of files that are often saved under this name by mistake.
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
        MalformedInput: it is not a valid safetensors file; the message says why.
    """
    entries, _, length, stamp = _read_entries(path)
    tensors = [_tensor(name, entry, 8 + length, stamp, path) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    _check_cover(tensors, 8 + length, stamp.num_bytes, path)
    return {tensor.name: tensor for tensor in tensors}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file (such as ``format: pt``).

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
        fact = f"the header begins with {text[:1]!r} instead of an opening brace"
        raise _malformed(fact, path)
    entries = parse_json_object(text, file=path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed("the metadata is not a map of strings", path)
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
            raise _malformed(f"this is {what}, not safetensors", path, remedy=remedy)


def _header_length(descriptor: int, stamp: FileStamp, path: Path) -> int:
    if stamp.num_bytes < 8:
        fact = f"the file has only {stamp.num_bytes} bytes; the length of the header takes 8"
        raise _malformed(fact, path)
    (length,) = struct.unpack("<Q", read_exactly(descriptor, 0, 8, path=path))
    if length > _MAX_HEADER_BYTES:
        fact = f"the header's length is {length} bytes; at most {_MAX_HEADER_BYTES} are allowed"
        raise _malformed(fact, path)
    if 8 + length > stamp.num_bytes:
        fact = f"the header is cut off: the file has {stamp.num_bytes} bytes, its header needs {8 + length}"
        raise _malformed(fact, path)
    return int(length)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(name: str, entry: Any, start: int, stamp: FileStamp, path: Path) -> FileTensor:
    """Check one entry by itself; whether the entries fit together is checked over all of them."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fact = "the entry's fields are not exactly dtype, shape and data_offsets"
        raise _malformed(fact, path, name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        fact = f"safetensors has no dtype {printable(dtype)}"
        raise _malformed(fact, path, name)
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or not all(map(_is_count, shape)):
        fact = f"the shape {printable(shape)} is not a list of at most {_MAX_AXES} non-negative integers"
        raise _malformed(fact, path, name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        fact = f"the data_offsets {printable(offsets)} are not [begin, end]"
        raise _malformed(fact, path, name)
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        # Checked at every step: a zero further on would hide an overflow from the whole product.
        if bits >= 2**66:
            fact = f"the shape {printable(shape)} is too large for any file"
            raise _malformed(fact, path, name)
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        fact = f"the shape {printable(shape)} of {dtype} needs {bits / 8:g} bytes; it has {end - begin} bytes"
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
            fact = f"there is {what} in the data at byte {min(tensor.offset, position)}"
            raise _malformed(fact, path, tensor.name)
        position += tensor.num_bytes
    if position > file_bytes:
        unfinished = path.name.endswith(".incomplete") or path.resolve().name.endswith(".incomplete")
        what = "the download has not finished" if unfinished else "the file is cut off"
        raise _malformed(f"{what}: {file_bytes} of {position} bytes are there", path)
    if position < file_bytes:
        extra = file_bytes - position
        raise _malformed(f"{extra} bytes follow the data, which ends at byte {position}", path)
