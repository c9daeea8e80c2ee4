"""What a fit may change: numbers that start at the tuned model, and the edits that they amount to.

A part adds a thin product to the output of one linear layer while it is fitted, and becomes edits of matrices
afterwards. Nothing of the model itself is trained.

Shape suffixes: O out, I in, F rows of the whole (fused) weight, K directions, R rank of an adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.errors import UnsupportedFormat
from intruscope.linalg.lowrank import low_rank_svd
from intruscope.repair.edits import MatrixEdit, scaled_update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from intruscope.adapters.live import LivePair
    from intruscope.repair.survey import Survey, SurveyedMatrix
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.views import TensorView

MAX_DIRECTIONS = 64
"""Directions of one matrix with a factor of their own, where an update is not low-rank."""
_NEGLIGIBLE = 1e-7
"""A singular value below this share of the largest is rounding."""

Numbers: TypeAlias = "tuple[Tensor, ...]"
"""The trained numbers of one part."""
Correction = Callable[[Numbers, "Tensor"], "Tensor"]
"""From numbers and a layer's input (..., I) to what is added to its output (..., F)."""


class Part(ABC):
    """Something that is fitted: the factors of one matrix, or one module of an adapter."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Unique among the parts of a fit."""

    @property
    @abstractmethod
    def layer(self) -> str:
        """Name of a matrix of the layer whose output is corrected."""

    @abstractmethod
    def start(self) -> Numbers:
        """The numbers of the tuned model itself; float32, on the CPU."""

    @abstractmethod
    def correction(self, view: TensorView, device: torch.device) -> Correction:
        """The correction of the layer's output, zero at the start.

        Args:
            view: Where the matrix lies in the layer's weight.
            device: Where the model runs.
        """

    @abstractmethod
    def edits(self, numbers: Numbers) -> tuple[MatrixEdit, ...]:
        """What the numbers amount to; none where they change nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FactorPart(Part):
    """Factors on the update of one matrix: W' = W₀ + t ΔW + Σ (s_k − t) σ_k u_k v_kᵀ.

    Attributes:
        name: Name of the matrix.
        left_OK: Unit columns; float64.
        values_K: σ_k; float64.
        right_IK: Unit columns; float64.
        rest_OI: ΔW, whose rest beyond the directions has a factor t of its own; None for an update that is
            the sum of its directions.
        is_tied: All directions share one factor.
    """

    name: str
    left_OK: Tensor
    values_K: Tensor
    right_IK: Tensor
    rest_OI: Tensor | None = None
    is_tied: bool = False

    @property
    def key(self) -> str:
        """The matrix's name."""
        return self.name

    @property
    def layer(self) -> str:
        """The matrix's name."""
        return self.name

    def start(self) -> Numbers:
        """Ones: one per direction and one for the rest, or a single one."""
        import torch

        num_own = 1 if self.is_tied else len(self.values_K) + (self.rest_OI is not None)
        return (torch.ones(num_own),)

    def correction(self, view: TensorView, device: torch.device) -> Correction:
        """Two thin products, and a dense one where there is a rest."""
        import torch

        def lifted(rows_OX: Tensor) -> Tensor:
            return rows_OX if view.rows is None else view.rows.lift(rows_OX, view.whole_shape[0])

        wide = {"device": device, "dtype": torch.float32}
        left_FK, right_IK = lifted(self.left_OK).to(**wide), self.right_IK.to(**wide)  # type: ignore[call-overload]
        values_K = self.values_K.to(**wide)  # type: ignore[call-overload]
        rest_FI = None if self.rest_OI is None else lifted(self.rest_OI).to(**wide)  # type: ignore[call-overload]

        def correct(numbers: Numbers, given: Tensor) -> Tensor:
            own_K, rest = self._split(numbers[0])
            floor: Tensor | float = 1.0 if rest is None else rest
            found: Tensor = ((given @ right_IK) * ((own_K - floor) * values_K)) @ left_FK.T
            if rest_FI is None or rest is None:
                return found
            with_rest: Tensor = found + (rest - 1.0) * (given @ rest_FI.T)
            return with_rest

        return correct

    def edits(self, numbers: Numbers) -> tuple[MatrixEdit, ...]:
        """One edit."""
        own_K, rest = self._split(numbers[0].detach().cpu().double())
        if self.is_tied or not len(self.values_K):
            scale = float(own_K[0] if self.is_tied else numbers[0][-1])
            return () if scale == 1.0 else (scaled_update(self.name, scale),)
        scale = 1.0 if rest is None else float(rest)
        change_K = (own_K - scale) * self.values_K
        if scale == 1.0 and not bool(change_K.any()):
            return ()
        return (
            MatrixEdit(
                name=self.name,
                update_scale=scale,
                left_OK=self.left_OK,
                change_K=change_K,
                right_IK=self.right_IK,
            ),
        )

    def factors(self, numbers: Numbers) -> Tensor:
        """The factor of each direction: (K,), float64."""
        return self._split(numbers[0].detach().cpu().double())[0]

    def _split(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """The factors of the directions (K,), and that of the rest."""
        if self.is_tied:
            return numbers.expand(len(self.values_K)), None
        if self.rest_OI is None:
            return numbers, None
        return numbers[:-1], numbers[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayPart(Part):
    """One module of a LoRA adapter whose factors are trained on.

    Attributes:
        module: Its A as stored; the key.
        pairs: The matrices that it changes.
        up_FR: B.
        down_RI: A.
        scaling: s, of ΔW = s B A.
    """

    module: str
    pairs: tuple[MatrixPair, ...]
    up_FR: Tensor
    down_RI: Tensor
    scaling: float

    @property
    def key(self) -> str:
        """A's stored name."""
        return self.module

    @property
    def layer(self) -> str:
        """Any of the matrices: they are parts of one weight."""
        return self.pairs[0].name

    def start(self) -> Numbers:
        """B and A as the adapter has them."""
        return self.up_FR.float(), self.down_RI.float()

    def correction(self, _view: TensorView, device: torch.device) -> Correction:
        """The product s (B' A' − B A) x: the weight of the layer holds s B A."""
        start_FR, start_RI = (each.to(device) for each in self.start())

        def correct(numbers: Numbers, given: Tensor) -> Tensor:
            up_FR, down_RI = numbers
            return ((given @ down_RI.T) @ up_FR.T - (given @ start_RI.T) @ start_FR.T) * self.scaling

        return correct

    def edits(self, numbers: Numbers) -> tuple[MatrixEdit, ...]:
        """One edit for each matrix, along the orthonormal directions of the difference."""
        import torch

        up_FR, down_RI = (each.detach().cpu().double() for each in numbers)
        start_FR, start_RI = (each.double() for each in self.start())
        if torch.equal(up_FR, start_FR) and torch.equal(down_RI, start_RI):
            return ()
        left_FX = torch.cat([up_FR, -start_FR], dim=1) * self.scaling
        right_XI = torch.cat([down_RI, start_RI])
        found = []
        for pair in self.pairs:
            assert isinstance(pair.update, LoraUpdate)
            left_OK, values_K, right_IK = low_rank_svd(pair.update.view.select_rows(left_FX), right_XI)
            kept = values_K > _NEGLIGIBLE * values_K[0]
            found.append(
                MatrixEdit(
                    name=pair.name,
                    update_scale=1.0,
                    left_OK=left_OK[:, kept],
                    change_K=values_K[kept],
                    right_IK=right_IK[:, kept],
                )
            )
        return tuple(found)


def parts_of(fix: str, survey: Survey, pair: LivePair) -> tuple[Part, ...]:
    """What one fix trains.

    Args:
        fix: Name in :data:`intruscope.fitting.table.FITS`.
        survey: Of the pair; an update that is not low-rank needs its spectrum for ``fitted``.
        pair: The loaded pair, for updates that are not low-rank.

    Raises:
        UnsupportedFormat: ``replay`` of anything but a plain LoRA adapter.
    """
    if fix == "replay":
        return _replay_parts(survey)
    return tuple(
        _factor_part(matrix, survey, pair, is_tied=fix == "fitted_matrix")
        for matrix in survey.matrices
        if matrix.update_norm > 0.0
    )


def _factor_part(matrix: SurveyedMatrix, survey: Survey, pair: LivePair, *, is_tied: bool) -> FactorPart:
    import torch

    by_name = {each.name: each for each in survey.pairing.pairs}
    update = by_name[matrix.name].update
    if matrix.update_svd is not None:
        left, values, right = matrix.update_svd
        kept = values > _NEGLIGIBLE * values[0]
        left, values, right = left[:, kept], values[kept], right[:, kept]
        # An update that is stored as factors is the sum of its directions, and so is one with few of them.
        if (isinstance(update, LoraUpdate) and update.is_low_rank) or len(values) <= MAX_DIRECTIONS:
            return FactorPart(
                name=matrix.name, left_OK=left, values_K=values, right_IK=right, is_tied=is_tied
            )
    rest_OI = (pair.tuned_matrix(matrix.name) - pair.base_matrix(matrix.name)).cpu()
    if is_tied or matrix.update_svd is None:
        rows, columns = matrix.report.shape
        left, values, right = torch.zeros(rows, 0), torch.zeros(0), torch.zeros(columns, 0)
    return FactorPart(
        name=matrix.name,
        left_OK=left[:, :MAX_DIRECTIONS].double(),
        values_K=values[:MAX_DIRECTIONS].double(),
        right_IK=right[:, :MAX_DIRECTIONS].double(),
        rest_OI=rest_OI,
    )


def _replay_parts(survey: Survey) -> tuple[Part, ...]:
    from intruscope.adapters.kind import read_wide

    surveyed = {matrix.name for matrix in survey.matrices}
    grouped: dict[str, list[MatrixPair]] = {}
    for pair in survey.pairing.pairs:
        if pair.name not in surveyed:
            continue
        update = pair.update
        if not isinstance(update, LoraUpdate) or not update.is_low_rank or update.swapped or update.enabled:
            raise UnsupportedFormat(
                "replay trains the factors of a plain LoRA adapter, and the update of this matrix is stored "
                "in another form",
                remedy="leave replay out; fitted works on every form of update",
                tensor=pair.name,
            )
        grouped.setdefault(update.down.name, []).append(pair)
    return tuple(_replay_part(module, pairs, read_wide) for module, pairs in grouped.items())


def _replay_part(module: str, pairs: Sequence[MatrixPair], read: Callable[..., Tensor]) -> ReplayPart:
    update = pairs[0].update
    assert isinstance(update, LoraUpdate)
    return ReplayPart(
        module=module,
        pairs=tuple(pairs),
        up_FR=read(update.up).flatten(1),
        down_RI=read(update.down).flatten(1),
        scaling=update.scaling,
    )
