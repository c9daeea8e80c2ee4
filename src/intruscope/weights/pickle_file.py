"""PyTorch files, read only with ``--allow-pickle``: the pickle is opened once, for shapes and offsets.

``torch.load(weights_only=True, map_location="meta")`` rebuilds every tensor without data and knows where
its bytes lie in the zip archive; those places are checked against the archive's own directory. So no worker
ever unpickles, and one tensor is read at a time. Only planning with ``allow_pickle`` imports torch.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any

from intruscope.errors import IntruscopeError, MalformedInput, UnsafeInput, printable
from intruscope.weights.stored import DTYPE_BITS, FileStamp, FileTensor, open_regular, read_exactly

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_MIN_TORCH = (2, 10)  # older ones have known holes in weights_only loading
_MAX_PICKLE_BYTES = 256 * 2**20
_ENCRYPTED = 0x1  # flag of a zip member
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_DTYPE_NAMES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8",
    "torch.bool": "BOOL", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.complex64": "C64",
}  # fmt: skip


def read_pickle(path: Path) -> dict[str, FileTensor]:
    """List the tensors of one PyTorch file, running nothing that it says.

    Returns:
        Name to record. Tied tensors share their place.

    Raises:
        UnsafeInput: not a plain PyTorch zip archive (legacy tar or pickle, TorchScript, compressed or damaged
            members), or its pickle asks for more than tensors, or this torch is too old.
        MalformedInput: no tensors in it, or tensors outside their storage.
    """
    import torch

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < _MIN_TORCH:
        raise UnsafeInput(
            f"torch {torch.__version__} cannot open pickles safely; 2.10 or newer can",
            remedy="update torch, or use the safetensors version",
            file=path,
        )
    with open_regular(path) as (descriptor, stamp):
        places = _check_archive(descriptor, stamp, path)
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            try:
                stream.seek(0)
                loaded = torch.load(stream, map_location="meta", weights_only=True, mmap=False)
            except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, EOFError) as error:
                raise _unsafe("the pickle holds more than tensors", path) from error
            except (AttributeError, IndexError, AssertionError, RecursionError, MemoryError) as error:
                raise _unsafe("the pickle is damaged", path) from error
    tensors = _find_tensors(loaded)
    if not tensors:
        fact = f"the file holds a {type(loaded).__name__} without named tensors, not a state dict"
        raise MalformedInput(fact, remedy="check that this file holds a model", file=path)
    return {name: _record(name, tensor, places, stamp, path) for name, tensor in tensors.items()}


def _unsafe(what: str, path: Path) -> UnsafeInput:
    return UnsafeInput(
        f"{what}; only a plain PyTorch zip archive of tensors is read",
        remedy="use the safetensors version, or save the model again with a current PyTorch",
        file=path,
    )


def _check_archive(descriptor: int, stamp: FileStamp, path: Path) -> dict[int, int]:
    """Check the zip archive around the pickle; returns offset to length of each uncompressed member."""
    start = bytes(read_exactly(descriptor, 0, min(265, stamp.num_bytes), path=path))
    if start.startswith(b"version https://git-lfs"):
        fact = "this is a git-LFS pointer, not the weights"
        raise MalformedInput(fact, remedy="run git lfs pull in that folder", file=path)
    if start[257:262] == b"ustar":
        raise _unsafe("this is a legacy tar checkpoint", path)
    if not start.startswith(b"PK\x03\x04"):
        kind = "a legacy pickle" if start.startswith(b"\x80") else "not a PyTorch archive"
        raise _unsafe(f"this is {kind}", path)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if any(member.flag_bits & _ENCRYPTED for member in members):
                raise _unsafe("the archive is encrypted", path)
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise _unsafe("the archive has two members with the same name", path)
            if any(part in name for name in names for part in ("/code/", "constants.pkl")):
                raise _unsafe("this is a TorchScript program", path)
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise _unsafe("the archive is compressed", path)
            pickles = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise _unsafe("the archive does not hold exactly one pickle of reasonable size", path)
            orders = [archive.read(name) for name in names if name.endswith("/byteorder")]
            if any(order != b"little" for order in orders):
                raise _unsafe("the numbers are big-endian", path)
            damaged = archive.testzip()
            if damaged is not None:
                raise _unsafe(f"the checksum of {os.path.basename(damaged)!r} is wrong", path)  # noqa: PTH119 - a zip name
            return {_data_offset(descriptor, member, path): member.file_size for member in members}
    except IntruscopeError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, struct.error) as error:
        raise _unsafe("the archive is damaged", path) from error
    except (RuntimeError, ValueError) as error:  # flags and methods that zipfile does not support
        raise _unsafe(f"the archive cannot be read ({printable(error)})", path) from error


def _data_offset(descriptor: int, member: zipfile.ZipInfo, path: Path) -> int:
    """Where a member's bytes begin: after its local header, whose name and extra field vary in length."""
    header = read_exactly(descriptor, member.header_offset, 30, path=path)
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def _find_tensors(loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict itself, or the one that a training script wrapped."""
    import torch

    for _ in range(2):
        if not isinstance(loaded, dict):
            return {}
        tensors = {
            name: value
            for name, value in loaded.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        if tensors:
            return tensors
        loaded = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
    return {}


def _record(
    name: str, tensor: torch.Tensor, places: Mapping[int, int], stamp: FileStamp, path: Path
) -> FileTensor:
    """Place one tensor in the file; a view with strides is refused rather than read in the wrong order."""
    dtype = _DTYPE_NAMES.get(str(tensor.dtype))
    if dtype is None or tensor.layout.__repr__() != "torch.strided" or tensor.is_quantized:
        fact = f"the tensor has dtype {tensor.dtype} and layout {tensor.layout}, which are not read"
        raise MalformedInput(fact, remedy="convert the model to safetensors", file=path, tensor=name)
    if not tensor.is_contiguous():
        fact = f"the tensor is not contiguous (strides {tuple(tensor.stride())})"
        raise MalformedInput(fact, remedy="convert the model to safetensors", file=path, tensor=name)
    element_bytes = DTYPE_BITS[dtype] // 8
    num_bytes = math.prod(tensor.shape) * element_bytes
    place: int | None = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    within = int(tensor.storage_offset()) * element_bytes
    if num_bytes == 0:
        place = within = 0
    elif place is None or within + num_bytes > places.get(place, 0):
        fact = f"the {num_bytes} bytes of this tensor lie outside every member of the archive"
        raise MalformedInput(fact, remedy="save the file again", file=path, tensor=name)
    return FileTensor(
        name=name,
        path=path,
        dtype=dtype,
        shape=tuple(tensor.shape),
        offset=place + within,
        stamp=stamp,
    )
