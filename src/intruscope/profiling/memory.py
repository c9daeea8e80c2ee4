"""How much memory a process takes, and has taken at most since a moment.

On the CPU it is the resident memory of the process as the kernel counts it: everything that was allocated and
touched, the allocator's holes included. On CUDA it is what torch's allocator holds for tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

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
