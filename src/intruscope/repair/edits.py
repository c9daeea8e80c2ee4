"""What an intervention does to one matrix, as a record that costs a few vectors.

Shape suffixes: O out, I in, K edited directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixEdit:
    """W' = W₀ + update_scale (W − W₀) + left diag(change) rightᵀ.

    Attributes:
        name: Name of the matrix in a scan; or the stored name of a tensor that is not a matrix (a bias, a
            norm's weight), which only ``update_scale`` can change.
        update_scale: Factor on the update; 1 keeps it.
        left_OK: Unit columns in output space, float64.
        change_K: What is added along each direction: (strength − 1) σ for an intruder; float64.
        right_IK: Unit columns in input space, float64.
    """

    name: str
    update_scale: float
    left_OK: torch.Tensor
    change_K: torch.Tensor
    right_IK: torch.Tensor

    @property
    def num_directions(self) -> int:
        """Number of directions that are changed one by one."""
        return len(self.change_K)

    def applied(self, base_OI: torch.Tensor, tuned_OI: torch.Tensor) -> torch.Tensor:
        """The edited matrix in float64, on the device of the given ones.

        Args:
            base_OI: W₀ of any precision; of any shape for a tensor that is no matrix.
            tuned_OI: W likewise.
        """
        # W itself where it is kept whole, so that an empty edit is the identity to the last bit.
        edited = tuned_OI.double()
        if self.update_scale != 1.0:
            before = base_OI.double()
            edited = before + self.update_scale * (edited - before)
        if self.num_directions:
            left_OK, right_IK = (
                (self.left_OK * self.change_K).to(edited.device),
                self.right_IK.to(edited.device),
            )
            edited = edited + left_OK @ right_IK.T
        return edited


def scaled_update(name: str, update_scale: float) -> MatrixEdit:
    """An edit that only scales a whole update."""
    import torch

    nothing = torch.zeros((0, 0), dtype=torch.float64)
    return MatrixEdit(
        name=name,
        update_scale=update_scale,
        left_OK=nothing,
        change_K=torch.zeros(0, dtype=torch.float64),
        right_IK=nothing,
    )
