"""The work on one module, in a worker: decompose its update, then check the factors that were made of it.

Both functions take and give plain data, so that an interrupted extraction resumes.

Shape suffixes: O out, I in, R rank, K known triplets.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.linalg.lowrank import low_rank_svd
from intruscope.linalg.truncated import Truncation, leading, spectral_bounds, within
from intruscope.spectra.codec import pack_tensor, unpack_tensor
from intruscope.spectra.matrix import Loaded, exact_arithmetic, examine, load_pair, seed_for
from intruscope.spectra.updates import rounding_norm, update_report
from intruscope.weights.matrices import Finding, LowRankUpdate, MatrixPair, StoredUpdate

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.spectra.matrix import Examined
    from intruscope.spectra.records import ScanSettings
    from intruscope.writing.modules import TargetModule

_CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many directions of an update to compute.

    Attributes:
        rank: Their number; 0 computes only the norm of the update.
        left_fraction: Or as many as are needed to leave out at most this share of ‖ΔW‖_F².
    """

    rank: int = 0
    left_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class GivenUpdate(StoredUpdate):
    """Factors that are in memory: W = W₀ + left right."""

    left_OR: Tensor
    right_RI: Tensor

    def load(self, base_OI: Tensor) -> LowRankUpdate:  # noqa: ARG002 - factors need no base
        """The factors as they are."""
        return LowRankUpdate(left_OR=self.left_OR, right_RI=self.right_RI)


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """The leading directions of one module's update.

    Attributes:
        found: Triplets; what was journaled of their vectors is float32.
        rank: What suffices where a share was asked for.
        base_norm: ‖W₀‖_F.
        rank_bound: The highest rank that such an update can have.
        effective_rank: As :class:`intruscope.spectra.records.Estimate` of plain data; None for none.
        rounding_fraction: See :class:`intruscope.extract.records.ExtractedMatrix`.
    """

    found: Truncation
    rank: int
    base_norm: float
    rank_bound: int
    effective_rank: dict[str, Any] | None
    rounding_fraction: float | None

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """B (O, R) and A (R, I), each with half of every singular value: float64."""
        return self.found.factors(rank)

    def spectral(self, rank: int, dtype: torch.dtype) -> tuple[float, float]:
        """Between which values ‖ΔW − B A‖₂ lies for factors of a rank, stored in a dtype.

        Rounding turns each factor's entries by half an ulp: B A moves by at most (2 u + u²) Σ σ.
        """
        low, high = spectral_bounds(self.found, rank)
        # The journal's float32 and the file's dtype each round once.
        unit = 0.5 * (torch.finfo(dtype).eps + torch.finfo(torch.float32).eps)
        return low, high + (2.0 * unit + unit**2) * float(self.found.values_K[:rank].sum())


# --- the first pass --------------------------------------------------------------------------------


def decompose_module(payload: tuple[TargetModule, Wanted, ScanSettings]) -> dict[str, Any]:
    """The leading directions of one update, as plain data.

    Args:
        payload: The module, how many, and the scan's settings for seed and threads.

    Returns:
        ``{"finding": ...}`` for what cannot be decomposed; else what :func:`directions_from_plain` reads, or
        ``None`` under ``found`` where only the norm was asked for or nothing changed.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    module, wanted, settings = payload
    with exact_arithmetic(settings.threads):
        loaded = load_pair(module.whole)
        if isinstance(loaded, Finding):
            return {"finding": asdict(loaded)}
        update = update_of(loaded)
        square = _square(update)
        plain: dict[str, Any] = {"finding": None, "square": square, "found": None}
        if square == 0.0 or (wanted.rank == 0 and wanted.left_fraction is None):
            return plain
        seed = seed_for(settings, module.name, "extract")
        if wanted.left_fraction is None:
            found = leading(update, wanted.rank + 1, seed=seed, dense=settings.prove)
            rank = min(wanted.rank, len(found.values_K))
        else:
            found, rank = within(update, wanted.left_fraction, seed=seed, dense=settings.prove)
        base_norm = math.sqrt(_square(loaded.base_OI))
        kept = found.cut(max(rank, wanted.rank))
        return {**plain, "found": {
            "values": pack_tensor(found.values_K),
            "left": pack_tensor(kept.left_MK.float()),
            "right": pack_tensor(kept.right_NK.float()),
            "residuals": pack_tensor(found.residuals_K),
            "complete": found.complete,
            "certificate": found.certificate,
            "failure_probability": found.failure_probability,
            "rank": rank,
            "base_norm": base_norm,
            "rank_bound": min(*module.shape, *([update[0].shape[1]] if isinstance(update, tuple) else [])),
            "effective_rank": _effective_rank(update, module, loaded, base_norm, settings),
            "rounding_fraction": _rounding_fraction(loaded, square),
        }}  # fmt: skip


def directions_from_plain(data: dict[str, Any]) -> Directions:
    """What :func:`decompose_module` found of one module that changed."""
    found = data["found"]
    return Directions(
        found=Truncation(
            values_K=unpack_tensor(found["values"]),
            left_MK=unpack_tensor(found["left"]),
            right_NK=unpack_tensor(found["right"]),
            residuals_K=unpack_tensor(found["residuals"]),
            total_square=data["square"],
            complete=found["complete"],
            certificate=found["certificate"],
            failure_probability=found["failure_probability"],
        ),
        **{
            name: found[name]
            for name in ("rank", "base_norm", "rank_bound", "effective_rank", "rounding_fraction")
        },
    )


def update_of(loaded: Loaded) -> Tensor | tuple[Tensor, Tensor]:
    """ΔW, or its factors where it has them; float64 where that is what is decomposed."""
    if isinstance(loaded.form, tuple):
        return loaded.form
    if min(loaded.base_OI.shape) <= DENSE_LIMIT:
        return loaded.form.double() - loaded.base_OI
    return loaded.form - loaded.base_OI


def _square(matrix: Tensor | tuple[Tensor, Tensor]) -> float:
    if isinstance(matrix, tuple):
        return float(low_rank_svd(*matrix)[1].square().sum())
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _effective_rank(
    update: Tensor | tuple[Tensor, Tensor],
    module: TargetModule,
    loaded: Loaded,
    base_norm: float,
    settings: ScanSettings,
) -> dict[str, Any] | None:
    report, *_ = update_report(
        update,
        shape=module.shape,
        base_frobenius_norm=base_norm,
        base_spectral_norm=0.0,
        stored_dtype=None if isinstance(update, tuple) else loaded.stored,
        exact=settings.exact_effective_rank,
        seed=seed_for(settings, module.name, "rank"),
        name=module.name,
    )
    return None if report.effective_rank is None else asdict(report.effective_rank)


def _rounding_fraction(loaded: Loaded, square: float) -> float | None:
    """How much of the update storing the tuned weights makes on average; they are about as large as W₀."""
    if loaded.tuned is None or isinstance(loaded.form, tuple):
        return None
    noise = rounding_norm(loaded.tuned, math.sqrt(_square(loaded.form)))
    return min(1.0, noise**2 / square)


# --- the second pass -------------------------------------------------------------------------------


def check_module(payload: tuple[TargetModule, Tensor, Tensor, ScanSettings]) -> dict[str, Any]:
    """Measure the factors as they are written, and scan the tuned and the extracted module.

    Args:
        payload: The module, B (O, R), A (R, I) in the dtype of the file, and the scan's settings.

    Returns:
        ``error``: ‖ΔW − B A‖_F in float64; ``intruders``: the fields of
        :class:`intruscope.extract.records.KeptIntruders` per matrix of a scan, in the paper's scope.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    module, left_OR, right_RI, settings = payload
    with exact_arithmetic(settings.threads):
        loaded = load_pair(module.whole)
        assert isinstance(loaded, Loaded)  # it was in the first pass, and files are stamped
        error = _distance(loaded, left_OR.double(), right_RI.double())
        del loaded
        intruders = []
        if module.in_scope:
            intruders = [_kept(pair, left_OR, right_RI, settings) for pair in module.pairs]
    return {"error": error, "intruders": intruders}


def _distance(loaded: Loaded, left_OR: Tensor, right_RI: Tensor) -> float:
    """‖ΔW − B A‖_F, a few rows at a time in float64."""
    if isinstance(loaded.form, tuple):
        both = torch.cat([loaded.form[0].double(), -left_OR], dim=1)
        return float(low_rank_svd(both, torch.cat([loaded.form[1].double(), right_RI]))[1].norm())
    square = 0.0
    for start in range(0, len(left_OR), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        change = loaded.form[rows].double() - loaded.base_OI[rows].double()
        square += float((change - left_OR[rows] @ right_RI).square().sum())
    return math.sqrt(square)


def _kept(pair: MatrixPair, left_FR: Tensor, right_RI: Tensor, settings: ScanSettings) -> dict[str, Any]:

    given = GivenUpdate(left_OR=pair.base.select_rows(left_FR.float()), right_RI=right_RI.float())
    before, after = examine(pair, settings), examine(replace(pair, update=given), settings)
    old_OK, new_OK = _intruders(before), _intruders(after)
    inside = (new_OK.T @ old_OK).square().sum(dim=0)
    open_verdicts = ("borderline", "degenerate")
    return {
        "name": pair.name,
        "tuned": old_OK.shape[1],
        "extracted": new_OK.shape[1],
        "kept": int((inside > 0.5).sum()),
        "undecided": sum(v in open_verdicts for each in (before, after) for v in _verdicts(each)),
    }


def _verdicts(found: Examined) -> tuple[str, ...]:
    return found.report.sides[0].verdicts if found.report.sides else ()


def _intruders(found: Examined) -> Tensor:
    """Directions of the intruders: unit columns."""
    if found.spectrum is None:
        return torch.zeros((found.report.shape[0], 0), dtype=torch.float64)
    index = [i for i, verdict in enumerate(_verdicts(found)) if verdict == "intruder"]
    return found.spectrum.left_MK[:, index]
