"""Tensors in memory, and mappings of them, as sources that a plan can name: nothing touches the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.errors import UnsupportedFormat, UsageError, printable
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import INTEGER_NAMES, TORCH_NAMES, StoredTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from intruscope.weights.architecture import ModuleClass

_DTYPES = {name: dtype for dtype, name in {**TORCH_NAMES, **INTEGER_NAMES}.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryTensor(StoredTensor):
    """A tensor that somebody else holds; never written to. On any device; reading copies to the CPU.

    Attributes:
        values: The tensor, detached, in ``shape`` or with more slices on its first axis.
    """

    values: torch.Tensor = field(repr=False)

    def read_leading(self, first: int, count: int) -> torch.Tensor:
        """Copy some slices; see :class:`StoredTensor`."""
        part = self.values[first : first + count] if self.shape else self.values.reshape(1)
        return part.detach().to("cpu", copy=True).contiguous()

    def raw(self) -> Iterator[bytearray]:
        """The bytes as safetensors stores them; see :class:`StoredTensor`."""
        import torch

        yield bytearray(self.read().flatten().view(torch.uint8).numpy().tobytes())


def memory_tensor(name: str, values: torch.Tensor) -> MemoryTensor:
    """Describe a tensor in memory.

    Args:
        name: As its owner calls it.
        values: On any device. Other dtypes than those of weights and plain integers are listed and not read.

    Raises:
        UnsupportedFormat: its numbers are not here (a meta tensor, or one sharded over processes).
    """
    if values.is_meta:
        raise UnsupportedFormat(
            "the tensor is on the meta device and has no numbers",
            remedy="load the model's weights first (low_cpu_mem_usage and init_empty_weights leave them out)",
            tensor=name,
        )
    if type(values.data).__name__ == "DTensor" or type(values).__name__ == "DTensor":
        raise UnsupportedFormat(
            "the tensor is sharded over several processes",
            remedy="gather the full weights first, or scan a saved checkpoint",
            tensor=name,
        )
    dtype = _DTYPES.get(str(values.dtype).removeprefix("torch."), "U8")
    return MemoryTensor(name=name, path=None, dtype=dtype, shape=tuple(values.shape), values=values.detach())


def memory_source(
    tensors: Mapping[str, torch.Tensor],
    *,
    config: dict[str, Any],
    name: str,
    classes: Mapping[str, ModuleClass] | None = None,
) -> ModelSource:
    """Tensors in memory and what says what they are, as an opened model.

    Raises:
        UnsupportedFormat: as :func:`memory_tensor`.
    """
    found = {key: memory_tensor(key, values) for key, values in tensors.items()}
    return ModelSource(name=name, path=None, config=config, classes=classes or {}, tensors=found, inputs=())


def mapping_source(tensors: Mapping[str, Any], *, name: str) -> ModelSource:
    """A mapping of names to tensors or numpy arrays as a model without a config.

    Raises:
        UsageError: it is empty, or a value is no tensor.
        UnsupportedFormat: as :func:`memory_tensor`.
    """
    import numpy
    import torch

    if not tensors:
        raise UsageError("the mapping of tensors is empty", remedy="pass names with their weights")
    found = {}
    for key, value in tensors.items():
        if isinstance(value, numpy.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise UsageError(
                f"{printable(repr(key))} maps to a {type(value).__name__}; names must map to tensors",
                remedy="pass a state dict, or a mapping of names to torch tensors or numpy arrays",
            )
        found[key] = value
    return memory_source(found, config={}, name=name)
