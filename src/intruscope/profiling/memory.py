"""How much memory tensors take at most, and how much the process that holds them.

The process's is its resident memory as the kernel counts it: everything that was allocated and touched, the
allocator's holes included. On CUDA both are what torch's allocator holds for tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


class MemoryMeter:
    """Memory of this process on one device.

    Args:
        device: A torch device.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._on_cuda = self._device.type == "cuda"

    def now(self) -> int:
        """Bytes in use; what was freed is given back to the system first."""
        gc.collect()
        if self._on_cuda:
            return torch.cuda.memory_allocated(self._device)
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
                ctypes.CDLL(None).malloc_trim(0)
        return _from_status("VmRSS") or self.peak()

    def restart(self) -> None:
        """Count the most from now on; where the system cannot, it stays that since the process began."""
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                _CLEAR.write_text("5")  # proc(5): resets the peak of the resident memory

    def peak(self) -> int:
        """The most bytes since :meth:`restart`."""
        if self._on_cuda:
            return torch.cuda.max_memory_allocated(self._device)
        # Not getrusage where there is a choice: it cannot be reset, and a child may inherit its parent's.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return _from_status("VmHWM") or most * (1 if sys.platform == "darwin" else 1024)

    def tensor_peak(self, step: Callable[[], object], held: Iterable[torch.Tensor]) -> int:
        """The most bytes of tensors at any moment of a step.

        Args:
            step: Is run once; slower than it would be alone.
            held: Tensors that are there already.
        """
        if self._on_cuda:
            self.restart()
            step()
            return self.peak()
        meter = TensorMeter(held)
        with meter:
            step()
        return meter.peak


class TensorMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the bytes of all tensors that live, as operations make them; use as a context manager.

    What an operation takes and gives back within itself is not seen. Tensors that share their storage, views
    among them, count once.

    Args:
        held: Tensors that are there already.
    """

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._live = 0
        self.peak = 0
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self._live -= size

        self._known[key] = weakref.ref(storage, freed)
        self._live += size
        self.peak = max(self.peak, self._live)


def _from_status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    return None


def free_memory() -> int:
    """Bytes that new processes could take: of the machine, and of the container where it is limited."""
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(_LIMIT.read_text()) - int(_USED.read_text()))
    return free
