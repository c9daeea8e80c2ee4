"""One matrix of the (out, in) convention, cut out of one stored tensor.

A view is pure selection: one slice of a leading expert axis, a transposition, the flattening of a
convolution's kernel, and a choice of output rows. It never adds or scales, so that a low-rank update of
the whole tensor can be cut the same way.

Shape suffixes: O out, I in, R rank, F rows of the whole (fused) matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.weights.stored import DTYPE_BITS, StoredTensor

if TYPE_CHECKING:
    import torch

    from intruscope.weights.matrices import Scope


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """The output rows of one part of a fused matrix: blocks at a fixed stride.

    Part ``i`` covers rows ``start + i * stride`` to ``start + i * stride + block``. A contiguous part is one
    block; parts interleaved per head have one block per head; gate and up interleaved row by row have
    blocks of one row.
    """

    start: int
    block: int
    num_blocks: int = 1
    stride: int = 0

    def __post_init__(self) -> None:
        if self.num_blocks > 1 and self.stride < self.block:
            raise ValueError("blocks overlap")

    @property
    def num_rows(self) -> int:
        """Rows selected."""
        return self.block * self.num_blocks

    @property
    def stop(self) -> int:
        """One past the last row selected."""
        return self.start + self.stride * (self.num_blocks - 1) + self.block

    def indices(self) -> range | list[int]:
        """The selected rows in order."""
        if self.num_blocks == 1:
            return range(self.start, self.start + self.block)
        return [
            row
            for i in range(self.num_blocks)
            for row in range(self.start + i * self.stride, self.start + i * self.stride + self.block)
        ]

    def select(self, whole_FX: torch.Tensor) -> torch.Tensor:
        """Cut these rows out of a matrix whose rows are those of the whole: (num_rows, X), contiguous."""
        if self.num_blocks == 1:
            return whole_FX[self.start : self.start + self.block].contiguous()
        import torch

        index = torch.tensor(self.indices(), dtype=torch.int64, device=whole_FX.device)
        return whole_FX.index_select(0, index)

    def lift(self, part_PX: torch.Tensor, num_rows: int) -> torch.Tensor:
        """The opposite of :meth:`select`: (num_rows, X), zero in the rows that are not selected."""
        whole_FX = part_PX.new_zeros((num_rows, *part_PX.shape[1:]))
        whole_FX[self.indices()] = part_PX
        return whole_FX


@dataclass(frozen=True, kw_only=True)
class TensorView:
    """One named matrix of one stored tensor.

    Attributes:
        name: Of the matrix: the tensor's name without ``.weight``, with ``[q]``, ``[3][gate]`` for parts.
        kind: ``q k v o gate up down embedding head router conv other`` and the like.
        layer: Index of the block, None outside the blocks.
        scope: ``paper`` for linear layers of the blocks.
        tensor: Where the numbers lie.
        transposed: The file holds (in, out): Conv1D, embeddings, some fused experts.
        expert: Index on the leading axis of a fused expert tensor.
        rows: The rows of the whole (out, in) matrix that are this part; None for all of them.
    """

    name: str
    kind: str
    layer: int | None
    scope: Scope
    tensor: StoredTensor
    transposed: bool = False
    expert: int | None = None
    rows: RowSelection | None = None

    @property
    def is_stand_in(self) -> bool:
        """Whether this is the matrix of a module that is not stored, but shares this tensor with another."""
        return self.name.partition("[")[0] != self.tensor.name.removesuffix(".weight")

    @property
    def whole_shape(self) -> tuple[int, int]:
        """(out, in) before ``rows`` are chosen: of the fused matrix, of one expert."""
        axes = self.tensor.shape if self.expert is None else self.tensor.shape[1:]
        first, second = axes[0], math.prod(axes[1:])
        return (second, first) if self.transposed else (first, second)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        num_out, num_in = self.whole_shape
        return (num_out if self.rows is None else self.rows.num_rows, num_in)

    @property
    def estimated_bytes(self) -> int:
        """Peak memory of :meth:`load`: the bytes read and, where they are rearranged, the result."""
        element = DTYPE_BITS[self.tensor.dtype] // 8
        result = math.prod(self.shape) * element
        if self._is_slice_of_file or (self.rows is None and not self.transposed):
            return result
        return math.prod(self.whole_shape) * element + result

    @property
    def _is_slice_of_file(self) -> bool:
        """Whether the chosen rows lie together in the file, so that no others need be read."""
        together = self.rows is not None and self.rows.num_blocks == 1
        return together and not self.transposed and self.expert is None

    def load(self) -> torch.Tensor:
        """Read the matrix: (out, in), contiguous, in the stored dtype.

        Raises:
            MalformedInput: the file changed since planning, or its dtype cannot be decoded.
        """
        if self.expert is not None:
            return self._arranged(self.tensor.read_leading(self.expert, 1)[0])
        if self.rows is not None and self._is_slice_of_file:
            return self.tensor.read_leading(self.rows.start, self.rows.block).reshape(self.shape)
        return self._arranged(self.tensor.read())

    def cut(self, stored: torch.Tensor) -> torch.Tensor:
        """The same matrix out of another tensor of the stored shape, on its device and in its dtype: a copy.

        Args:
            stored: A state of the whole tensor (a live parameter, a merged weight).
        """
        found = self._arranged(stored if self.expert is None else stored[self.expert])
        return (
            found.clone()
            if found.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
            else found
        )

    def _arranged(self, part: torch.Tensor) -> torch.Tensor:
        """(out, in) of this view, contiguous, from one expert's or the whole stored tensor."""
        flat = part.reshape(part.shape[0], math.prod(part.shape[1:]))
        whole = flat.T if self.transposed else flat
        return self.rows.select(whole) if self.rows is not None else whole.contiguous()

    def place(self, matrix_OI: torch.Tensor, stored: torch.Tensor) -> None:
        """Put a matrix where :meth:`load` takes it from, rounded once to the stored dtype.

        Args:
            matrix_OI: (out, in) of any precision.
            stored: The whole tensor in its stored shape, contiguous; changed in place, other parts are not.
        """
        part = stored if self.expert is None else stored[self.expert]
        flat = part.view(part.shape[0], math.prod(part.shape[1:]))
        whole = flat.T if self.transposed else flat
        if self.rows is None:
            whole.copy_(matrix_OI)
        else:
            whole[self.rows.indices()] = matrix_OI.to(whole.device, whole.dtype)

    def select_rows(self, left_FR: torch.Tensor) -> torch.Tensor:
        """Cut the left factor of an update of the whole (fused) matrix to this part's rows.

        Args:
            left_FR: (rows of the whole matrix, rank), out first.

        Returns:
            (out of this view, rank).
        """
        return left_FR if self.rows is None else self.rows.select(left_FR)
