"""A pretend GPU, and a real one where there is one, for the same questions.

Pretended, tensors in main memory behave as if they lay on a device of their own.

No GPU is needed to find what only a GPU would show: an operation on tensors of two devices, ``numpy`` on a
tensor that is not on the CPU, a random generator of the wrong device, and on ``mps`` a float64. The rules are
CUDA's: a CPU scalar (no axis) may meet the device, CPU tensors may index it, and only copies cross over.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

_aten = torch.ops.aten
_CROSSING = {_aten.copy_.default, _aten._to_copy.default}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}


class _There:
    """Which storages lie on the device; they are kept alive, so that no address is used twice."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind, 0)
        self.num_operations = 0
        self._kept: dict[int, torch.UntypedStorage] = {}

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._kept

    def put(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._kept[storage._cdata] = storage
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


class _Operations(TorchDispatchMode):
    """Every operation: of one device, and its results lie there."""

    def __init__(self, there: _There) -> None:
        super().__init__()
        self._there = there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_flatten((args, kwargs or {}))[0] if isinstance(leaf, torch.Tensor)]
        there = self._there
        on_device = [there.holds(tensor) for tensor in given]
        if any(on_device) and func not in _CROSSING:
            strangers = [
                t for t, is_there in zip(given, on_device, strict=True) if not is_there and t.dim() > 0
            ]
            if strangers and not (func in _INDEXED and on_device[0]):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device: {func} met {there.device} and cpu"
                )
        results = func(*args, **(kwargs or {}))
        if any(on_device):
            there.num_operations += 1
            known = {tensor.untyped_storage()._cdata for tensor in given}
            for result in tree_flatten(results)[0]:
                if isinstance(result, torch.Tensor) and result.untyped_storage()._cdata not in known:
                    there.put(result)
        return results


class _Names(TorchFunctionMode):
    """What Python says of devices: ``.device``, ``device=``, ``.to``, ``.cpu``, ``.numpy``."""

    def __init__(self, there: _There) -> None:
        super().__init__()
        self._there = there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there, name = self._there, getattr(func, "__name__", "")
        if func is torch.device or name == "_parse_to":  # they make a name, and no tensor
            return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is not None and there.holds(first):
            if func == torch.Tensor.device.__get__:
                return there.device
            for kind in ("cuda", "mps"):
                if func == getattr(torch.Tensor, f"is_{kind}").__get__:
                    return there.device.type == kind
            if name in ("numpy", "__array__"):
                raise TypeError(f"can't convert {there.device} device type tensor to numpy")
        target = self._target(name, args, kwargs)
        generator = kwargs.get("generator")
        if target is not None and target.type != "cpu" and isinstance(generator, torch.Generator):
            raise RuntimeError(f"Expected a '{target.type}' device type for generator but found 'cpu'")
        args, kwargs = tree_map(self._plain, args), tree_map(self._plain, kwargs)
        if name == "cpu":
            func, args = torch.Tensor.to, (*args, torch.device("cpu"))
        result = func(*args, **kwargs)
        if name == "__deepcopy__" and first is not None and there.holds(first):
            there.put(result)  # its bytes are copied, which no operation sees
        if (
            target is None
            or not isinstance(result, torch.Tensor)
            or there.holds(result) == (target.type != "cpu")
        ):
            return result
        with _unwatched():
            moved = result.detach().clone()
        if target.type != "cpu":
            there.put(moved)
        return moved.requires_grad_(result.requires_grad and result.is_leaf)

    def _target(self, name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
        """The device that a call names; None where it names none."""
        if name in ("cpu", "cuda"):
            return torch.device("cpu") if name == "cpu" else self._there.device
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
            return self._there.device if self._there.holds(args[1]) else torch.device("cpu")
        told = kwargs.get("device")
        if told is None and name == "to":
            told = next((a for a in args[1:] if isinstance(a, (str, torch.device))), None)
        if told is None:
            return None
        device = torch.device(told)
        if device.type not in ("cpu", "meta", self._there.device.type):
            raise RuntimeError(f"there is no {device}")
        return None if device.type == "meta" else device

    def _plain(self, value: Any) -> Any:
        """A device's name as that of the CPU, where everything really lies."""
        kind = self._there.device.type
        if isinstance(value, torch.device) and value.type == kind:
            return torch.device("cpu")
        return "cpu" if isinstance(value, str) and value.partition(":")[0] == kind else value


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes():
        yield


@contextlib.contextmanager
def pretend_device(kind: str = "cuda") -> Iterator[_There]:
    """Inside, there is a device of this kind; what is yielded knows which tensors lie on it."""
    there = _There(kind)
    with _Operations(there), _Names(there):
        yield there


@contextlib.contextmanager
def real_device() -> Iterator[None]:
    """The GPU of this machine; the test is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    yield
    torch.cuda.synchronize()
