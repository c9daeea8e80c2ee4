"""The spectrum of every update of one adapter, and the adapter's fingerprint.

Shape suffixes: O out, I in, R rank, K probes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.adapters.alone import load_alone
from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.inspect.records import InspectedModule
from intruscope.weights.matrices import Finding, LowRankUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from intruscope.adapters.alone import AloneAdapter
    from intruscope.inspect.records import Part
    from intruscope.weights.matrices import DenseUpdate, MatrixPair

NUM_PROBES = 16
LARGEST_DENSE = 2048
"""Smaller side up to which an update without factors is decomposed: seconds, against minutes at 4096."""
_ROUNDING = 2.0**-23
_MOST_WORKERS = 8
_MODULES_PER_TRIM = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the numbers of one adapter say.

    Attributes:
        modules: Every module with a spectrum.
        fingerprint: See :class:`intruscope.inspect.records.InspectedAdapter`.
        findings: About single modules.
    """

    modules: tuple[InspectedModule, ...]
    fingerprint: tuple[float, ...] | None
    findings: tuple[Finding, ...]


def measure(alone: AloneAdapter, *, on_module: Callable[[str], None]) -> Measured:
    """Read and decompose every update of an adapter, as many at a time as there are cores.

    Args:
        alone: The adapter.
        on_module: Called with the name of each module that is done, in their order.

    Raises:
        MalformedInput: a file changed since it was opened.
    """
    import torch

    from intruscope.spectra.matrix import exact_arithmetic

    parts: list[tuple[MatrixPair, Part]] = [(pair, "update") for pair in alone.pairs]
    parts += [(module.factors, "factors") for module in alone.unread if module.factors is not None]
    total_K: torch.Tensor | None = torch.zeros(NUM_PROBES, dtype=torch.float64) if alone.pairs else None
    modules: list[InspectedModule] = []
    findings: list[Finding] = []
    # Thin factorisations gain nothing from several threads each, and lose where cores are shared.
    with exact_arithmetic(1), ThreadPoolExecutor(_num_workers()) as pool:
        waiting = [pool.submit(_measured, pair, part, _scaling(pair, alone)) for pair, part in parts]
        try:
            for future, (pair, part) in zip(waiting, parts, strict=True):
                module, finding, probed_K = future.result()
                modules.append(module)
                if finding is not None:
                    findings.append(finding)
                if part == "update":
                    total_K = None if total_K is None or probed_K is None else total_K + probed_K
                on_module(pair.name)
                if len(modules) % _MODULES_PER_TRIM == 0:
                    _give_memory_back()
        finally:
            pool.shutdown(cancel_futures=True)
    fingerprint = None if total_K is None else tuple(total_K.tolist())
    return Measured(modules=tuple(modules), fingerprint=fingerprint, findings=tuple(findings))


def _give_memory_back() -> None:
    """Return freed memory to the system: factors of many sizes leave glibc's heaps full of holes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).malloc_trim(0)


def _num_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def _measured(
    pair: MatrixPair, part: Part, scaling: float | None
) -> tuple[InspectedModule, Finding | None, torch.Tensor | None]:
    """One module, what is wrong with it, and its share of the fingerprint where its norm is known."""
    import torch

    from intruscope.linalg.effective_rank import effective_rank
    from intruscope.linalg.lowrank import low_rank_singular_values

    update = load_alone(pair)
    is_low_rank = isinstance(update, LowRankUpdate)
    tensors = [tensor.double() for tensor in _tensors(update)]
    rank = tensors[0].shape[1] if is_low_rank else min(pair.base.shape)
    bound = math.prod(float(torch.linalg.vector_norm(tensor)) for tensor in tensors)
    values: torch.Tensor | None = None
    norm: float | None = None
    finding: Finding | None = None
    if not math.isfinite(bound):
        finding = _unusable(tensors, pair.name)
    elif is_low_rank:
        values = low_rank_singular_values(*tensors)
        norm = float(torch.linalg.vector_norm(values))
    else:
        norm = bound
        if rank <= LARGEST_DENSE:
            values = torch.linalg.svdvals(tensors[0])
        else:
            message = (
                f"an update without factors whose smaller side is above {LARGEST_DENSE}: its norm is given, "
                "its spectrum is not computed"
            )
            finding = Finding(code="no-spectrum", severity="warning", message=message, matrix=pair.name)
    module = InspectedModule(
        name=pair.name,
        kind=pair.kind,
        layer=pair.layer,
        shape=pair.base.shape,
        part=part,
        rank=rank,
        singular_values=None if values is None else tuple(values.tolist()),
        frobenius_norm=norm,
        effective_rank=None if values is None else effective_rank(values),
        numerical_rank=None if values is None else int((values > _ROUNDING * bound).sum()),
        scaling=scaling,
    )
    return module, finding, None if norm is None else _probed(pair, tensors)


def _scaling(pair: MatrixPair, alone: AloneAdapter) -> float | None:
    if isinstance(pair.update, (LoraUpdate, ExpertUpdate)):
        return pair.update.scaling
    scale = alone.scales.get(pair.name)
    return None if scale is None else scale.scaling


def _tensors(update: LowRankUpdate | DenseUpdate) -> tuple[torch.Tensor, ...]:
    if isinstance(update, LowRankUpdate):
        return update.left_OR, update.right_RI
    return (update.tuned_OI,)


def _unusable(tensors: Sequence[torch.Tensor], name: str) -> Finding:
    """Why the norm of an update is not finite."""
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors)
    where = "the factors" if len(tensors) == 2 else "the update"
    count = "1 number" if bad == 1 else f"{bad} numbers"
    fact = f"NaN or infinity in {count} of {where}"
    if not bad:
        fact = f"the norm of {where} is too large to compute with"
    code = "non-finite" if bad else "out-of-range"
    return Finding(code=code, severity="error", message=fact, matrix=name)


def _probed(pair: MatrixPair, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """u_kᵀ ΔW v_k for random signs u_k and v_k that the matrix's name and shape alone determine: (K,).

    The mean of their squares is ‖ΔW‖_F² without bias, because signs are independent with variance 1.
    """
    import torch

    num_out, num_in = pair.base.shape
    text = f"{pair.name}\n{num_out} {num_in}".encode("utf-8", "surrogatepass")
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (NUM_PROBES, num_out + num_in), generator=generator, dtype=torch.int8)
    signs_KX = signs.double().mul_(2.0).sub_(1.0)
    left_KO, right_KI = signs_KX[:, :num_out], signs_KX[:, num_out:]
    if len(tensors) == 2:
        left_OR, right_RI = tensors
        return ((left_KO @ left_OR) * (right_KI @ right_RI.T)).sum(dim=1)
    return ((left_KO @ tensors[0]) * right_KI).sum(dim=1)
