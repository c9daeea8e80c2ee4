"""Updates that adapters of every kind can hold: a module saved whole, and single tokens.

Numbers that are not finite are left as they are: the analysis of the pair reports them.

Shape suffixes: O out, I in, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.adapters.kind import read_wide
from intruscope.weights.matrices import DenseUpdate, StoredUpdate

if TYPE_CHECKING:
    import torch

    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView


@dataclass(frozen=True, kw_only=True)
class SavedUpdate(StoredUpdate):
    """The module was trained and saved whole (``modules_to_save``)."""

    tuned: TensorView

    def load(self, base_OI: torch.Tensor) -> DenseUpdate:  # noqa: ARG002 - a whole matrix needs no base
        """Read the tuned matrix in its stored dtype.

        Raises:
            MalformedInput: the file changed since planning.
        """
        return DenseUpdate(tuned_OI=self.tuned.load())


@dataclass(frozen=True, kw_only=True)
class TokensUpdate(StoredUpdate):
    """Some words of an embedding were trained: their rows as stored, columns here, are replaced.

    Words past the base's vocabulary are new and have nothing to be compared with.
    """

    rows: StoredTensor
    indices: tuple[int, ...]

    def load(self, base_OI: torch.Tensor) -> DenseUpdate:
        """The base with the trained columns in place.

        Raises:
            MalformedInput: the file changed since planning.
        """
        tuned_OI = base_OI.clone()
        old = [(row, word) for row, word in enumerate(self.indices) if word < base_OI.shape[1]]
        rows_NO = read_wide(self.rows)[[row for row, _ in old]]
        tuned_OI[:, [word for _, word in old]] = rows_NO.T.to(base_OI.dtype)
        return DenseUpdate(tuned_OI=tuned_OI)
