"""Writing safetensors: new files from tensors old and new, and copies in which some tensors are replaced.

What is not replaced keeps its bytes, whatever its dtype. Files are streamed: one tensor is in memory at a
time.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import IO, TYPE_CHECKING

from intruscope.weights.stored import (
    DTYPE_BITS,
    INTEGER_NAMES,
    TORCH_NAMES,
    FileTensor,
    StoredTensor,
    open_regular,
    read_pieces,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import torch

_TYPE_NAMES = {name: dtype for dtype, name in (TORCH_NAMES | INTEGER_NAMES).items()}


class HashedFile:
    """A new file that is hashed while it is written.

    Args:
        path: Must not exist.

    Attributes:
        num_bytes: Written so far.
    """

    def __init__(self, path: Path) -> None:
        self._stream: IO[bytes] = path.open("xb")
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; raises OSError where there is no room."""
        self._stream.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)

    @property
    def sha256(self) -> str:
        """Of everything written."""
        return self._hash.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def num_bytes(tensor: StoredTensor | torch.Tensor) -> int:
    """Length of a tensor's data as safetensors stores it."""
    return tensor.num_bytes if isinstance(tensor, StoredTensor) else tensor.numel() * tensor.element_size()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """A tensor's numbers as safetensors stores them: row by row, little-endian."""
    import torch

    data: bytes = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return data


def write_safetensors(
    file: HashedFile, tensors: Mapping[str, StoredTensor | torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a new safetensors file.

    Args:
        file: Open and empty.
        tensors: By name, in the order in which they are to lie; stored ones are copied byte for byte.
        metadata: Free text for the header.

    Raises:
        MalformedInput: a stored tensor's file changed since planning.
        OSError: no room.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        if isinstance(tensor, StoredTensor):
            dtype = tensor.dtype
        else:
            dtype = _TYPE_NAMES[str(tensor.dtype).removeprefix("torch.")]
        shape = list(tensor.shape)
        start, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin on a multiple of eight
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        if isinstance(tensor, StoredTensor):
            for piece in tensor.raw():
                file.write(piece)
        else:
            file.write(tensor_bytes(tensor))


def copy_file(file: HashedFile, source: Path) -> None:
    """Copy a regular file byte for byte.

    Raises:
        MalformedInput: it changed meanwhile, or cannot be read.
        OSError: no room.
    """
    with open_regular(source) as (_, stamp):
        pass
    for piece in read_pieces(source, 0, stamp.num_bytes, stamp=stamp):
        file.write(piece)


def copy_with_replacements(
    file: HashedFile,
    source: Path,
    tensors: Iterable[FileTensor],
    replacement: Callable[[FileTensor], torch.Tensor | None],
) -> None:
    """Copy a safetensors file with some tensors replaced by others of the same dtype and shape.

    Header, metadata, order and every other tensor keep their bytes.

    Args:
        file: Open and empty.
        source: The file.
        tensors: Everything in it, as its header tells.
        replacement: Asked for each tensor in the order of the file; None keeps it.

    Raises:
        MalformedInput: the source changed since planning.
        OSError: no room.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    stamp = ordered[0].stamp
    for piece in read_pieces(source, 0, ordered[0].offset, stamp=stamp):
        file.write(piece)
    for tensor in ordered:
        new = replacement(tensor)
        if new is None:
            for piece in tensor.raw():
                file.write(piece)
            continue
        data = tensor_bytes(new)
        assert len(data) == tensor.num_bytes
        file.write(data)
