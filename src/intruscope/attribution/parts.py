"""The parts that an update splits into, and the products of a gradient with each of them.

Every figure of an attribution is an inner product of a gradient G with a part of the change ΔW. A part is a
whole parameter, a matrix in it, or ``l lᵀ ΔW`` for a left vector l of that matrix. Each part has a column in
one table, where these products are added up.

Shape suffixes: O out, I in, K left vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.linalg.overlap import directions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from intruscope.adapters.live import ChangedParameter, LivePair
    from intruscope.repair.survey import SurveyedMatrix
    from intruscope.weights.views import TensorView

MAX_DIRECTIONS = 32
"""Singular directions of an update that are reported one by one: all, for an adapter of usual rank."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixPart:
    """A surveyed matrix inside a changed parameter.

    Attributes:
        surveyed: Its top vectors and their verdicts.
        view: Where it lies in the parameter.
        column: Column of the whole matrix; its left vectors have the columns after it.
        num_directions: The first so many left vectors are singular vectors of the update, the others the top
            vectors of the tuned matrix.
        left_KO: Left vectors, unit rows.
        right_KI: ``left_KO @ ΔW``.
        norm: ‖ΔW‖_F².
        norms: Squared norm of the part along each left vector.
    """

    surveyed: SurveyedMatrix
    view: TensorView
    column: int
    num_directions: int
    left_KO: torch.Tensor
    right_KI: torch.Tensor
    norm: float
    norms: tuple[float, ...]

    @property
    def direction_columns(self) -> range:
        """Columns of the singular directions of the update."""
        first = self.column + 1
        return range(first, first + self.num_directions)

    @property
    def vector_columns(self) -> range:
        """Columns of the top vectors of the tuned matrix."""
        first = self.column + 1
        return range(first + self.num_directions, first + len(self.left_KO))

    @property
    def direction_norms(self) -> tuple[float, ...]:
        """Squared norm of the part along each singular direction."""
        return self.norms[: self.num_directions]

    @property
    def vector_norms(self) -> tuple[float, ...]:
        """Squared norm of the part along each top vector."""
        return self.norms[self.num_directions :]


@dataclass(frozen=True, kw_only=True, eq=False)
class ParameterPart:
    """A changed parameter.

    Attributes:
        changed: The parameter, with both of its values.
        column: Column of the whole parameter.
        matrices: The surveyed matrices in it.
        norm: Squared norm of its change.
    """

    changed: ChangedParameter
    column: int
    matrices: tuple[MatrixPart, ...]
    norm: float

    @property
    def is_covered(self) -> bool:
        """Whether the surveyed matrices are all of it."""
        num = sum(math.prod(matrix.view.shape) for matrix in self.matrices)
        return num == self.changed.parameter.numel()

    @property
    def num_columns(self) -> int:
        """Columns of the parameter, its matrices and their left vectors."""
        return 1 + sum(1 + len(matrix.left_KO) for matrix in self.matrices)

    def products(self, gradient: torch.Tensor) -> torch.Tensor:
        """Inner products of a gradient with the change and its parts, one per column, float64 on the CPU.

        Args:
            gradient: Of the shape of the parameter.
        """
        import torch

        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        change = change_of(self.changed)
        whole = torch.dot(wide.flatten(), change.flatten()).reshape(1)
        found = [whole]
        is_one = self.is_covered and len(self.matrices) == 1
        for matrix in self.matrices:
            gradient_OI = matrix.view.cut(wide)
            found.append(whole if is_one else (gradient_OI * matrix.view.cut(change)).sum().reshape(1))
            found.append(((matrix.left_KO @ gradient_OI) * matrix.right_KI).sum(1))
        return torch.cat(found).cpu().double()


def change_of(changed: ChangedParameter) -> torch.Tensor:
    """Tuned minus base, in float32 or wider, in the layout of the parameter."""
    import torch

    dtype = torch.promote_types(changed.base.dtype, torch.float32)
    return changed.tuned.to(dtype) - changed.base.to(dtype)


def parts_of(pair: LivePair, surveyed: Sequence[SurveyedMatrix], *, seed: int) -> tuple[ParameterPart, ...]:
    """Every changed parameter of a pair, with the surveyed matrices in it and their left vectors.

    Args:
        pair: The loaded pair.
        surveyed: From :func:`intruscope.repair.survey.survey` of the same models.
        seed: Random seed of the Krylov space for the directions of a large update that is not low-rank.

    Cost: memory for the left vectors and their products with ΔW; ΔW is formed for one parameter at a time.
    """
    by_name = {matrix.name: matrix for matrix in surveyed}
    found: list[ParameterPart] = []
    column = 0
    for changed in pair.changed_parameters():
        change = change_of(changed)
        first, matrices = column, []
        column += 1
        for name, view in changed.views.items():
            if name in by_name:
                part = _matrix_part(by_name[name], view, view.cut(change), column, seed)
                matrices.append(part)
                column += 1 + len(part.left_KO)
        norm = float(change.double().square().sum())
        found.append(ParameterPart(changed=changed, column=first, matrices=tuple(matrices), norm=norm))
    return tuple(found)


def _matrix_part(
    surveyed: SurveyedMatrix, view: TensorView, change_OI: torch.Tensor, column: int, seed: int
) -> MatrixPart:
    import torch

    if surveyed.update_svd is not None:
        left_OR, values_R, _ = surveyed.update_svd
        own_OR = left_OR[:, : min(MAX_DIRECTIONS, int((values_R > 0).sum()))]
    else:
        own_OR = directions(change_OI.double().cpu(), MAX_DIRECTIONS, seed=seed).left_OK
    left_KO = torch.cat([own_OR.T, surveyed.left_OK.T]).to(change_OI.dtype).to(change_OI.device)
    right_KI = left_KO @ change_OI
    return MatrixPart(
        surveyed=surveyed,
        view=view,
        column=column,
        num_directions=own_OR.shape[1],
        left_KO=left_KO,
        right_KI=right_KI,
        norm=float(change_OI.double().square().sum()),
        norms=tuple(right_KI.double().square().sum(1).tolist()),
    )
