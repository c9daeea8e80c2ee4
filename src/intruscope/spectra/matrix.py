"""One matrix pair, from stored tensors to its report: what a worker process runs.

Inputs are checked for non-finite values before any decomposition; a matrix with one is a finding, not
a crash. Nothing here knows where the tensors came from.

Shape suffixes: O out, I in, R rank, K kept vectors.
"""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from intruscope.linalg.analysis import Analysis, analyse
from intruscope.linalg.chance import intruders_by_chance, modelled_values
from intruscope.linalg.dense import DenseSides
from intruscope.linalg.operators import Operator
from intruscope.linalg.overlap import chance_within, share_within
from intruscope.linalg.rotation import rotate_dense, rotate_low_rank
from intruscope.linalg.topk import TopTriplets, dense_triplets, frobenius_norm, top_triplets
from intruscope.records.plain import plain
from intruscope.spectra.findings import without_figures
from intruscope.spectra.records import (
    EPSILON_GRID,
    ChanceMethod,
    MatrixReport,
    NullCount,
    ScanSettings,
    Side,
    SimilarityMap,
    UpdateReport,
)
from intruscope.spectra.sides import side_report
from intruscope.spectra.updates import update_report
from intruscope.weights.matrices import DenseUpdate, Finding, LowRankUpdate, MatrixPair

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAGNITUDES = {torch.float32: (1e-15, 1e7), torch.float64: (1e-140, 1e70)}
"""Largest entries for which squares, and squares of products of two factors, neither overflow nor vanish."""
_THIN = 4
"""A low-rank update is used as such while its rank is below a quarter of the smaller side."""


class Examined(NamedTuple):
    """A report with what it was made from.

    Attributes:
        report: Everything said of the matrix.
        spectrum: Its top vectors; None where the report has no figures.
        change: The base and its update in working precision; None likewise.
    """

    report: MatrixReport
    spectrum: TopTriplets | None = None
    change: Change | None = None


def analyse_pair(payload: tuple[MatrixPair, ScanSettings]) -> dict[str, Any]:
    """Load, check, decompose and report one pair.

    Args:
        payload: The pair and the settings.

    Returns:
        The fields of a :class:`MatrixReport` as plain data.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    with exact_arithmetic(payload[1].threads):
        return plain(examine(*payload).report)  # type: ignore[no-any-return]


@contextmanager
def exact_arithmetic(threads: int) -> Iterator[None]:
    """Full precision, no gradients, a fixed number of threads; what was set before is restored."""
    precision, before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(before)


def examine(pair: MatrixPair, settings: ScanSettings) -> Examined:
    """Load, check and decompose one pair; call it under :func:`exact_arithmetic`.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    started = time.monotonic()
    found = _examine(pair, settings)
    return found._replace(report=replace(found.report, seconds=round(time.monotonic() - started, 4)))


def seed_for(settings: ScanSettings, name: str, purpose: str) -> int:
    """A seed that depends on the run's seed, the matrix and the purpose, and on nothing else."""
    digest = hashlib.sha256(f"{settings.seed}\0{name}\0{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


class Loaded(NamedTuple):
    """One pair in working precision, finite and not empty.

    Attributes:
        base_OI: float32, or float64 where either side is stored so.
        form: The factors of a low-rank update, or the tuned matrix itself.
        stored: The base's stored dtype.
        tuned: That of the tuned matrix; None for factors.
    """

    base_OI: Tensor
    form: tuple[Tensor, Tensor] | Tensor
    stored: torch.dtype
    tuned: torch.dtype | None


def load_pair(pair: MatrixPair) -> Loaded | Finding:
    """Read one pair, or say why it cannot be decomposed: NaN, infinities, extreme numbers, or none at all.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    stored = pair.base.load()
    found = unusable(stored, pair.name, "base")
    if found is not None:
        return found
    base = working(stored)
    update = pair.update.load(base)
    for label, tensor in update_tensors(update).items():
        found = unusable(tensor, pair.name, label)
        if found is not None:
            return found
    if 0 in base.shape:
        message = f"has the shape {tuple(base.shape)}: there is nothing to decompose"
        return Finding(code="empty-matrix", severity="info", message=message, matrix=pair.name)
    tuned = update.tuned_OI.dtype if isinstance(update, DenseUpdate) else None
    return Loaded(*_in_one_dtype(base, update), stored.dtype, tuned)


def _examine(pair: MatrixPair, settings: ScanSettings) -> Examined:
    loaded = load_pair(pair)
    if isinstance(loaded, Finding):
        return _refused(pair, loaded)
    base, form = loaded.base_OI, loaded.form
    unchanged = _unchanged(pair, base, form)
    change = Change(base, form)
    result = _analyse(change, pair, settings, "")
    null = _null_counts(change, pair, settings)
    maps = _similarity_maps(change, result.spectrum, pair, settings)
    tuned_norm = frobenius_norm(change.tuned_operator)
    base_norm = frobenius_norm(Operator.viewing(base))
    spectral = next(iter(result.sides.values())).base_norm
    facts, noise, values = update_report(
        change.for_share,
        shape=(base.shape[0], base.shape[1]),
        base_frobenius_norm=base_norm,
        base_spectral_norm=spectral,
        stored_dtype=None if change.low_rank else loaded.stored,
        exact=settings.exact_effective_rank,
        seed=seed_for(settings, pair.name, "rank"),
        name=pair.name,
    )
    facts = _with_top_energy(facts, change, result, pair, settings)
    chance = _chance(change, values, base_norm, facts.frobenius_norm, pair, settings)
    sides = tuple(
        side_report(
            side,
            alignments,
            result.spectrum,
            settings,
            tuned_frobenius_norm=tuned_norm,
            update=change.for_share,
            null=null.get(side),
            chance=chance.get(side),
            similarity=maps.get(side),
        )
        for side, alignments in result.sides.items()
    )
    report = MatrixReport(
        name=pair.name,
        shape=pair.base.shape,
        kind=pair.kind,
        layer=pair.layer,
        scope=pair.scope,
        status="done",
        singular_values=tuple(result.spectrum.singular_values.tolist()),
        residual_ratio=result.spectrum.residual_ratio,
        top_k_failure_probability=result.spectrum.failure_probability,
        sides=sides,
        update=facts,
        base_frobenius_norm=base_norm,
        base_spectral_norm=spectral,
        findings=(*unchanged, *noise),
    )
    return Examined(report, result.spectrum, change)


class Change:
    """A base and its update in the forms that the steps below need, made once."""

    def __init__(
        self, base_OI: Tensor, form: tuple[Tensor, Tensor] | Tensor, shared: DenseSides | None = None
    ) -> None:
        self.base_OI = base_OI
        self.shared = shared or DenseSides()
        self.factors = form if isinstance(form, tuple) else None
        self.low_rank = self.factors is not None
        self.tuned_OI: Tensor | None = None
        if self.factors is None:
            assert isinstance(form, Tensor)
            self.tuned_OI = form
        elif self.factors[0].shape[1] * _THIN > min(base_OI.shape):
            self.tuned_OI = base_OI + self.factors[0] @ self.factors[1]
        self.for_share: Tensor | tuple[Tensor, Tensor] = (
            self.factors if self.factors is not None else form - base_OI  # type: ignore[operator]
        )

    @property
    def keywords(self) -> Mapping[str, Tensor]:
        """How :func:`intruscope.linalg.analysis.analyse` takes the update."""
        if self.tuned_OI is not None:
            return {"tuned_OI": self.tuned_OI}
        assert self.factors is not None
        return {"left_OR": self.factors[0], "right_RI": self.factors[1]}

    @property
    def tuned_operator(self) -> Operator:
        """The tuned matrix through its products."""
        if self.tuned_OI is not None:
            return Operator.viewing(self.tuned_OI)
        assert self.factors is not None
        return Operator.viewing(self.base_OI).plus(*self.factors)

    def rotated(self, seed: int) -> Change:
        """The same base with a randomly rotated update."""
        if self.factors is not None:
            return Change(self.base_OI, rotate_low_rank(*self.factors, seed=seed), self.shared)
        assert isinstance(self.for_share, Tensor)
        rotated = self.base_OI + rotate_dense(self.for_share, seed=seed)
        return Change(self.base_OI, rotated, self.shared)


def _sides(settings: ScanSettings) -> tuple[Side, ...]:
    return ("left", "right") if settings.side == "both" else (settings.side,)


def _analyse(change: Change, pair: MatrixPair, settings: ScanSettings, purpose: str) -> Analysis:
    return analyse(
        change.base_OI,
        **change.keywords,
        k=None if settings.k == "all" else settings.k,
        sides=_sides(settings),
        thresholds=sorted({*EPSILON_GRID, settings.epsilon}),
        deciding=settings.epsilon,
        seed=seed_for(settings, pair.name, purpose),
        dense=settings.prove,
        shared=change.shared,
    )


def _null_counts(change: Change, pair: MatrixPair, settings: ScanSettings) -> dict[Side, NullCount]:
    """Intruders of the rotated update, over the trials."""
    counts: dict[Side, list[int]] = {side: [] for side in _sides(settings)}
    for trial in range(settings.null_trials):
        purpose = f"null {trial}"
        rotated = change.rotated(seed_for(settings, pair.name, purpose))
        for side, alignments in _analyse(rotated, pair, settings, purpose).sides.items():
            counts[side].append(int((alignments.upper < settings.epsilon).sum()))
    return {side: _null_count(tuple(seen), "rotated") for side, seen in counts.items() if seen}


def _null_count(counts: tuple[int, ...], method: ChanceMethod) -> NullCount:
    drawn = torch.tensor(counts, dtype=torch.float64)
    return NullCount(
        trials=len(counts),
        mean=float(drawn.mean()),
        low=float(drawn.quantile(0.025)),
        high=float(drawn.quantile(0.975)),
        counts=counts,
        method=method,
    )


def _chance(
    change: Change,
    update_values: Tensor | None,
    base_norm: float,
    update_norm: float,
    pair: MatrixPair,
    settings: ScanSettings,
) -> dict[Side, NullCount]:
    """Intruders in random directions, from what is known of both spectra: cheap enough for every scan."""
    if not settings.chance_trials or settings.k == "all":
        return {}
    if update_norm == 0.0:
        return {side: _null_count((0,), "spectra") for side in _sides(settings)}
    seed = seed_for(settings, pair.name, "chance")
    base_values = change.shared.values
    modelled = base_values is None or update_values is None
    if base_values is None:
        base_values = modelled_values(Operator.viewing(change.base_OI), base_norm, seed=seed)
    if update_values is None:
        assert isinstance(change.for_share, Tensor)
        update_values = modelled_values(Operator.viewing(change.for_share), update_norm, seed=seed)
    rows, columns = change.base_OI.shape
    found = intruders_by_chance(
        base_values,
        update_values,
        (rows, columns),
        k=settings.k,
        epsilon=settings.epsilon,
        sides=_sides(settings),
        # A long spectrum takes three times as long to sample as a short one.
        trials=settings.chance_trials if change.low_rank else -(-settings.chance_trials // 2),
        seed=seed,
    )
    method: ChanceMethod = "modelled-spectra" if modelled else "spectra"
    return {side: _null_count(counts, method) for side, counts in (found or {}).items()}


def _with_top_energy(
    facts: UpdateReport, change: Change, result: Analysis, pair: MatrixPair, settings: ScanSettings
) -> UpdateReport:
    """The update's facts with its share in the base's leading directions, which the alignments found."""
    side, alignments = next(iter(result.sides.items()))
    if settings.k == "all" or facts.frobenius_norm == 0.0 or alignments.base_norm == 0.0:
        return facts
    if alignments.base_top is not None:
        left, right = alignments.base_top if side == "left" else alignments.base_top[::-1]
    else:
        count = min(settings.k, *change.base_OI.shape)
        found = _triplets(Operator.viewing(change.base_OI), count, seed_for(settings, pair.name, "base top"))
        left, right = found.left_MK, found.right_NK
    return replace(
        facts,
        top_energy_fraction=share_within(change.for_share, left, right, norm=facts.frobenius_norm),
        top_energy_chance=chance_within(
            (pair.base.shape[0], pair.base.shape[1]), left.shape[1], right.shape[1]
        ),
    )


def _similarity_maps(
    change: Change, spectrum: TopTriplets, pair: MatrixPair, settings: ScanSettings
) -> dict[Side, SimilarityMap]:
    """|U0ᵀU| (and |V0ᵀV|) of the top vectors, in 1/255 steps."""
    count = min(settings.maps, *change.base_OI.shape)
    if not count:
        return {}
    seed = seed_for(settings, pair.name, "map")
    base = _triplets(Operator.viewing(change.base_OI), count, seed)
    tuned = (
        spectrum if len(spectrum.singular_values) >= count else _triplets(change.tuned_operator, count, seed)
    )
    result: dict[Side, SimilarityMap] = {}
    for side in _sides(settings):
        first, second = (base.left_MK, tuned.left_MK) if side == "left" else (base.right_NK, tuned.right_NK)
        levels = (
            (first[:, :count].T @ second[:, :count]).abs().clamp(max=1.0).mul(255).round().to(torch.uint8)
        )
        result[side] = SimilarityMap(num_base=count, num_tuned=count, levels=tuple(levels.flatten().tolist()))
    return result


def _triplets(operator: Operator, count: int, seed: int) -> TopTriplets:
    found = top_triplets(operator, count, seed=seed) if 32 * count < min(operator.shape) else None
    return found if found is not None else dense_triplets(operator, count)


def working(tensor: Tensor) -> Tensor:
    """A tensor in the precision that it is analysed in: float32, or float64 where it needs it."""
    dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    return tensor.to(dtype if _fits(_magnitude(tensor), dtype) else torch.float64)


def _magnitude(tensor: Tensor) -> float:
    """The largest absolute value; 0 of an empty tensor, NaN or infinity where there is one."""
    # NaN propagates into the extremes, at a fraction of the cost of looking for it.
    return max((abs(float(end)) for end in torch.aminmax(tensor)), key=_nan_last) if tensor.numel() else 0.0


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _fits(magnitude: float, dtype: torch.dtype) -> bool:
    low, high = _MAGNITUDES[dtype]
    return magnitude == 0.0 or low <= magnitude <= high


def _in_one_dtype(
    base: Tensor, update: LowRankUpdate | DenseUpdate
) -> tuple[Tensor, tuple[Tensor, Tensor] | Tensor]:
    """Both sides in the wider of their working precisions; nothing is ever rounded down."""
    tensors = [working(each) for each in (base, *update_tensors(update).values())]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    if isinstance(update, LowRankUpdate):
        return base.to(dtype), (update.left_OR.to(dtype), update.right_RI.to(dtype))
    return base.to(dtype), update.tuned_OI.to(dtype)


def update_tensors(update: LowRankUpdate | DenseUpdate) -> dict[str, Tensor]:
    """What an update consists of, by the words that a finding uses for it."""
    if isinstance(update, LowRankUpdate):
        return {"left factor of the update": update.left_OR, "right factor of the update": update.right_RI}
    return {"tuned": update.tuned_OI}


def unusable(tensor: Tensor, name: str, label: str) -> Finding | None:
    """Why a tensor cannot be decomposed: NaN, infinities or extreme numbers; None if it can.

    Args:
        tensor: As stored, or in working precision.
        name: The matrix that it belongs to.
        label: What the finding calls it.
    """
    magnitude = _magnitude(tensor)
    if not math.isfinite(magnitude):
        bad = torch.nonzero(~torch.isfinite(tensor))
        first = tuple(int(i) for i in bad[0])
        code = "non-finite"
        fact = f"{len(bad)} entries of the {label} are NaN or infinite (first at {first})"
    elif tensor.dtype == torch.float64 and not _fits(magnitude, torch.float64):
        low, high = _MAGNITUDES[torch.float64]
        code = "out-of-range"
        fact = (
            f"the largest entry of the {label} is {magnitude:.3g}; norms can be computed only between "
            f"{low:g} and {high:g}"
        )
    else:
        return None
    return Finding(code=code, severity="error", message=f"{fact}; not decomposed", matrix=name)


def _unchanged(pair: MatrixPair, base: Tensor, form: tuple[Tensor, Tensor] | Tensor) -> tuple[Finding, ...]:
    if isinstance(form, tuple):
        if bool((form[0] == 0).all()) or bool((form[1] == 0).all()):
            return (
                _info("never-trained", "the adapter changes nothing here: one of its factors is zero", pair),
            )
    elif torch.equal(form, base):
        return (_info("unchanged", "base and tuned matrix are equal", pair),)
    return ()


def _info(code: str, message: str, pair: MatrixPair) -> Finding:
    return Finding(code=code, severity="info", message=message, matrix=pair.name)


def _refused(pair: MatrixPair, finding: Finding) -> Examined:
    return Examined(without_figures(pair, "refused" if finding.severity == "error" else "done", finding))
