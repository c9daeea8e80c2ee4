"""A tensor that should be the same in the base and in the merged model: is it?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from intruscope.verify.rounding import smallest, unit_roundoff
from intruscope.weights.views import TensorView

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.verify.tasks import Compare
    from intruscope.weights.stored import StoredTensor


def compare_tensors(task: Compare) -> dict[str, Any]:
    """Compare both sides, up to the cast to the merged model's dtype.

    Returns:
        ``status`` (``equal``, ``changed``, or ``open`` where a dtype is not read) and ``relative_change``.

    Raises:
        MalformedInput: a file changed since planning.
    """
    equal = {"status": "equal", "relative_change": 0.0}
    if _same_bytes(task.base, task.merged) or (task.also is not None and _same_bytes(task.also, task.merged)):
        return equal
    if not (_tensor(task.base).decodable and _tensor(task.merged).decodable):
        same_dtype = _tensor(task.base).dtype == _tensor(task.merged).dtype
        return {"status": "changed" if same_dtype else "open", "relative_change": None}
    before, after = _read(task.base), _read(task.merged)
    change = after.double() - before.double()
    if bool((change.abs() <= _cast_error(before, after)).all()):
        return equal
    size = float(before.double().square().sum())
    moved = float(change.square().sum())
    known = size > 0 and math.isfinite(size) and math.isfinite(moved)
    return {"status": "changed", "relative_change": math.sqrt(moved / size) if known else None}


def _cast_error(before: Tensor, after: Tensor) -> Tensor:
    """How far a cast from one dtype to the other can move each number: nothing where they are the same."""
    if before.dtype == after.dtype:
        return torch.zeros((), dtype=torch.float64)
    return 2 * unit_roundoff(after.dtype) * before.double().abs() + smallest(after.dtype)


def _tensor(side: StoredTensor | TensorView) -> StoredTensor:
    return side.tensor if isinstance(side, TensorView) else side


def _read(side: StoredTensor | TensorView) -> Tensor:
    return side.load() if isinstance(side, TensorView) else side.read()


def _same_bytes(one: StoredTensor | TensorView, other: StoredTensor | TensorView) -> bool:
    if _tensor(one).dtype != _tensor(other).dtype:
        return False
    if isinstance(one, TensorView) or isinstance(other, TensorView):
        return _tensor(one).decodable and torch.equal(_read(one), _read(other))
    return all(first == second for first, second in zip(one.raw(), other.raw(), strict=True))
