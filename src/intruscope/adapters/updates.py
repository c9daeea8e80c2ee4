"""What an adapter did to one matrix, as (out, in) factors or as the tuned matrix.

PEFT keeps A (R, in) and B (out, R) in this orientation for Linear and Conv1D alike (``fan_in_fan_out``
only says how the *base* is stored), so ΔW = s B A here always. Factors are read in float32 (float64 where
stored so). Numbers that are not finite are left as they are: the analysis of the pair reports them.

Shape suffixes: O out, I in, R rank, N words, F rows of the whole (fused) matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.weights.matrices import DenseUpdate, LowRankUpdate, StoredUpdate

if TYPE_CHECKING:
    import torch

    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView


def _read_wide(tensor: StoredTensor) -> torch.Tensor:
    import torch

    numbers = tensor.read()
    return numbers if numbers.dtype == torch.float64 else numbers.float()


@dataclass(frozen=True, kw_only=True)
class LoraUpdate(StoredUpdate):
    """ΔW = s B A (arXiv 2106.09685), cut to the rows of one view; DoRA (arXiv 2402.09353) with ``magnitude``.

    DoRA gives W = diag(m / ‖W₀ + s B A‖_row) (W₀ + s B A). PEFT takes the norm over everything but the output
    axis for Linear, Conv1D, convolution and embedding, and (out, in) makes those one formula.

    Attributes:
        view: The base matrix; its rows are chosen from B (and m).
        down: A: (R, in) or (R, in, *kernel).
        up: B: (out, R) with trailing ones, or (enabled out, R, 1) with ``enabled``.
        scaling: s.
        swapped: The view is the transpose of the module's own (out, in).
        enabled: Which equal, contiguous parts of the output the old ``MergedLinear`` adapted. Its B is a
            grouped convolution: part g has its own R rows of A. Rows are scattered into contiguous parts
            whatever the model means by them (BLOOM interleaves q, k, v per head): training computed that.
        magnitude: DoRA's m, one per output row.
        replaced: A base weight that was saved with the adapter and replaces the base's.
    """

    view: TensorView
    down: StoredTensor
    up: StoredTensor
    scaling: float
    swapped: bool = False
    enabled: tuple[bool, ...] | None = None
    magnitude: StoredTensor | None = None
    replaced: TensorView | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether the update is its factors; not for DoRA, nor where the base itself was replaced."""
        return self.magnitude is None and self.replaced is None

    def load(self, base_OI: torch.Tensor) -> LowRankUpdate | DenseUpdate:
        """Read the factors; the tuned matrix instead for DoRA and for a replaced base.

        Raises:
            MalformedInput: the file changed since planning.
        """
        import torch

        right_RI = _read_wide(self.down).flatten(1)
        up = _read_wide(self.up).flatten(1)
        dtype = torch.promote_types(right_RI.dtype, up.dtype)
        right_RI, up = right_RI.to(dtype), up.to(dtype)
        left_FR = self._scattered(up) if self.enabled is not None else up
        left_FR = left_FR * self.scaling
        if self.swapped:
            left_FR, right_RI = right_RI.T.contiguous(), left_FR.T.contiguous()
        left_OR = self.view.select_rows(left_FR)
        if self.is_low_rank:
            return LowRankUpdate(left_OR=left_OR, right_RI=right_RI)
        dtype = torch.promote_types(dtype, base_OI.dtype)
        start = base_OI if self.replaced is None else self.replaced.load()
        tuned_OI = torch.addmm(start.to(dtype), left_OR.to(dtype), right_RI.to(dtype))
        if self.magnitude is not None:
            whole_F1 = _read_wide(self.magnitude).to(dtype).reshape(-1, 1)
            factor_O1 = self.view.select_rows(whole_F1) / torch.linalg.vector_norm(
                tuned_OI, dim=1, keepdim=True
            )
            tuned_OI = tuned_OI * factor_O1
        # Of an embedding that was resized, the words that the base has too.
        return DenseUpdate(tuned_OI=tuned_OI[:, : self.view.shape[1]])

    def _scattered(self, up: torch.Tensor) -> torch.Tensor:
        """(out, R * groups) with one block of B per enabled part, zero elsewhere."""
        assert self.enabled is not None
        num_groups, rank = sum(self.enabled), up.shape[1]
        part = up.shape[0] // num_groups
        left_FR = up.new_zeros(part * len(self.enabled), rank * num_groups)
        for group, index in enumerate(i for i, on in enumerate(self.enabled) if on):
            left_FR[index * part : (index + 1) * part, group * rank : (group + 1) * rank] = up[
                group * part : (group + 1) * part
            ]
        return left_FR


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
        rows_NX = _read_wide(self.rows)[[row for row, _ in old]]
        words_NX[[word for _, word in old]] = rows_NX.to(base_OI.dtype)
        return DenseUpdate(tuned_OI=tuned_OI)
