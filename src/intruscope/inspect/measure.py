"""The spectrum of every update of one adapter, and the adapter's fingerprint.

Shape suffixes: O out, I in, R rank, K probes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.adapters.alone import load_alone
from intruscope.inspect.records import InspectedModule
from intruscope.weights.matrices import Finding, LowRankUpdate

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from intruscope.adapters.alone import AloneAdapter
    from intruscope.inspect.records import Part
    from intruscope.weights.matrices import DenseUpdate, MatrixPair

NUM_PROBES = 16
LARGEST_DENSE = 2048
"""Smaller side up to which an update without factors is decomposed: seconds, against minutes at 4096."""
_ROUNDING = 2.0**-23


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
    """Read and decompose every update of an adapter, one at a time.

    Args:
        alone: The adapter.
        on_module: Called with the name of each module that is done.

    Raises:
        MalformedInput: a file changed since it was opened.
    """
    import torch

    modules: list[InspectedModule] = []
    findings: list[Finding] = []
    total_K = torch.zeros(NUM_PROBES, dtype=torch.float64)
    known = bool(alone.pairs)
    parts: list[tuple[MatrixPair, Part]] = [(pair, "update") for pair in alone.pairs]
    parts += [(module.factors, "factors") for module in alone.unread if module.factors is not None]
    for pair, part in parts:
        update = load_alone(pair)
        scale = alone.scales.get(pair.name)
        module, finding = _module(pair, part, update, scaling=None if scale is None else scale.scaling)
        modules.append(module)
        if finding is not None:
            findings.append(finding)
        if part == "update":
            if module.frobenius_norm is None:
                known = False
            else:
                total_K += _probed(pair, update)
        on_module(pair.name)
    fingerprint = tuple(total_K.tolist()) if known else None
    return Measured(modules=tuple(modules), fingerprint=fingerprint, findings=tuple(findings))


def _module(
    pair: MatrixPair, part: Part, update: LowRankUpdate | DenseUpdate, *, scaling: float | None
) -> tuple[InspectedModule, Finding | None]:
    import torch

    from intruscope.linalg.effective_rank import effective_rank
    from intruscope.linalg.lowrank import low_rank_singular_values

    tensors = _tensors(update)
    rank = min(pair.base.shape) if len(tensors) == 1 else tensors[0].shape[1]
    values: torch.Tensor | None = None
    norm: float | None = None
    finding = _unusable(tensors, pair.name)
    if finding is None:
        bound = math.prod(float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors)
        if len(tensors) == 2:
            values = low_rank_singular_values(*tensors)
            norm = float(torch.linalg.vector_norm(values))
        else:
            norm = bound
            if rank <= LARGEST_DENSE:
                values = torch.linalg.svdvals(tensors[0].double())
        if not math.isfinite(bound) or not math.isfinite(norm) or (values is not None and _overflows(values)):
            values = norm = None
            finding = _finding("out-of-range", "error", "the norm of the update overflows", pair.name)
        elif values is None:
            message = (
                f"an update without factors whose smaller side is above {LARGEST_DENSE}: its norm is given, "
                "its spectrum is not computed"
            )
            finding = _finding("no-spectrum", "warning", message, pair.name)
    return InspectedModule(
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
    ), finding


def _tensors(update: LowRankUpdate | DenseUpdate) -> tuple[torch.Tensor, ...]:
    if isinstance(update, LowRankUpdate):
        return update.left_OR, update.right_RI
    return (update.tuned_OI,)


def _overflows(values: torch.Tensor) -> bool:
    return not bool(values.isfinite().all())


def _unusable(tensors: tuple[torch.Tensor, ...], name: str) -> Finding | None:
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors)
    if not bad:
        return None
    where = "the factors" if len(tensors) == 2 else "the update"
    verb = "is" if bad == 1 else "are"
    return _finding("non-finite", "error", f"{bad} numbers of {where} {verb} NaN or infinite", name)


def _finding(code: str, severity: str, message: str, matrix: str) -> Finding:
    return Finding(code=code, severity=severity, message=message, matrix=matrix)  # type: ignore[arg-type]


def _probed(pair: MatrixPair, update: LowRankUpdate | DenseUpdate) -> torch.Tensor:
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
    if isinstance(update, LowRankUpdate):
        after_KR = left_KO @ update.left_OR.double()
        return (after_KR * (right_KI @ update.right_RI.double().T)).sum(dim=1)
    return ((left_KO @ update.tuned_OI.double()) * right_KI).sum(dim=1)
