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
    """Some words of an embedding or of a head were trained: their stored rows are replaced.

    Words past the base's vocabulary are new and have nothing to be compared with.

    Attributes:
        rows: (words, width), one row for each index.
        indices: The words.
        view: The base matrix; an embedding's is transposed, so that words are columns.
        replaced: A base weight that was saved with the adapter and replaces the base's (a resize).
    """

    rows: StoredTensor
    indices: tuple[int, ...]
    view: TensorView
    replaced: TensorView | None = None

    @property
    def num_words(self) -> int:
        """Words that the base has."""
        return self.view.shape[1] if self.view.transposed else self.view.shape[0]

    def load(self, base_OI: torch.Tensor) -> DenseUpdate:
        """The base with the trained words in place.

        Raises:
            MalformedInput: the file changed since planning.
        """
        start = base_OI if self.replaced is None else self.replaced.load().to(base_OI.dtype)
        tuned_OI = start.clone()
        words_NX = tuned_OI.T if self.view.transposed else tuned_OI
        old = [(row, word) for row, word in enumerate(self.indices) if word < self.num_words]
        rows_NX = read_wide(self.rows)[[row for row, _ in old]]
        words_NX[[word for _, word in old]] = rows_NX.to(base_OI.dtype)
        return DenseUpdate(tuned_OI=tuned_OI)
