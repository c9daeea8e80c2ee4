"""How often the entries of two updates have opposite signs: by counting, or from a sample of a large matrix.

Every entry counts alike, whatever its size. Entries that are zero in either update do not count.

Shape suffixes: T updates, O out, I in, M sampled rows, C sampled columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.linalg.forms import shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.linalg.forms import Form

EXACT_ENTRIES = 1 << 22
"""Matrices of at most this many entries (2,048 x 2,048) are counted; of larger ones a sample is."""
SAMPLE_SIDE = 256
"""Rows and columns of the sample."""
_BLOCK_ENTRIES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class SignConflicts:
    """Shares of entries with opposite signs, for all pairs of several updates; symmetric, float64.

    Attributes:
        share_TT: In [0, 1]; NaN where no entry counts.
        error_TT: Standard error of the sample; 0 where every entry was counted.
        shared_a_spread_TT: Standard deviation around ½ that random signs of the rows of one update would
            give. Two updates with unrelated B and the same A differ from ½ by as much.
    """

    share_TT: Tensor
    error_TT: Tensor
    shared_a_spread_TT: Tensor


def sign_conflicts(forms: Sequence[Form], *, seed: int = 0) -> SignConflicts:
    """Compare the signs of several updates of one matrix, entry by entry.

    Args:
        forms: Updates of one shape, finite.
        seed: Random seed of the sample of a large matrix.

    Numerics: entries are computed in float64. A large matrix is sampled on a grid of random rows and columns;
        its standard error adds the variance between rows and that between columns, which counts the noise of
        single entries twice and so errs on the safe side.
    Cost: T O I R for a small matrix, in blocks of rows; T 256² R for a large one.
    """
    rows, columns = shape_of(forms[0])
    is_sampled = rows * columns > EXACT_ENTRIES
    generator = torch.Generator().manual_seed(seed)
    row_ids, column_ids = torch.arange(rows), torch.arange(columns)
    if is_sampled:
        row_ids = torch.randperm(rows, generator=generator)[:SAMPLE_SIDE].sort().values
        column_ids = torch.randperm(columns, generator=generator)[:SAMPLE_SIDE].sort().values
    at_once = max(1, _BLOCK_ENTRIES // max(1, len(forms) * len(column_ids)))
    differing, counted = [], []  # by row: (M, T, T)
    column_sums = torch.zeros((2, len(column_ids), len(forms), len(forms)), dtype=torch.float64)
    for chosen in torch.split(row_ids, at_once):
        signs_MTC = torch.stack([_entries(form, chosen, column_ids).sign() for form in forms], dim=1).float()
        present = signs_MTC.abs()
        both = present @ present.transpose(1, 2)  # sums of at most I ones: exact in float32
        differing.append(((both - signs_MTC @ signs_MTC.transpose(1, 2)) / 2).double())
        counted.append(both.double())
        if is_sampled:
            signs_CTM, present_CTM = signs_MTC.permute(2, 1, 0), present.permute(2, 1, 0)
            along = present_CTM @ present_CTM.transpose(1, 2)
            column_sums[0] += (along - signs_CTM @ signs_CTM.transpose(1, 2)) / 2
            column_sums[1] += along
    by_row, per_row = torch.cat(differing), torch.cat(counted)
    total = per_row.sum(dim=0)
    share = by_row.sum(dim=0) / total
    # How far each row is from ½, in entries; a random sign of the row turns it around.
    away = (by_row - per_row / 2).square().sum(dim=0)
    error = torch.zeros_like(share)
    if is_sampled:
        error = _standard_error(by_row, per_row, column_sums, share, (rows, columns))
        # Less what the sampling of the columns adds, and over all rows.
        away = (away - total / 4 * (1 - len(column_ids) / columns)).clamp(min=0.0)
        away = away * len(row_ids) / rows
    return SignConflicts(share_TT=share, error_TT=error, shared_a_spread_TT=away.sqrt() / total)


def _entries(form: Form, row_ids: Tensor, column_ids: Tensor) -> Tensor:
    if isinstance(form, tuple):
        return form[0][row_ids].double() @ form[1][:, column_ids].double()
    return form[row_ids][:, column_ids].double()


def _standard_error(
    by_row: Tensor, per_row: Tensor, column_sums: Tensor, share: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Standard error of a ratio of sums over rows and over columns, both drawn without replacement."""
    variance = torch.zeros_like(share)
    for part, whole, size in ((by_row, per_row, shape[0]), (column_sums[0], column_sums[1], shape[1])):
        num = part.shape[0]
        if num < size:
            scatter = (part - share * whole).square().sum(dim=0)
            variance += scatter * num / max(1, num - 1) / whole.sum(dim=0).square() * (1 - num / size)
    return variance.sqrt()
