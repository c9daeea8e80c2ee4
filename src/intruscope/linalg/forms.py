"""The two forms of an update of one matrix: thin factors, or the (out, in) matrix itself.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Form: TypeAlias = "tuple[Tensor, Tensor] | Tensor"
"""An update: factors (left (O, R), right (R, I)) whose product it is, with the scaling; or
the matrix (O, I)."""


def shape_of(form: Form) -> tuple[int, int]:
    """(out, in) of an update."""
    if isinstance(form, tuple):
        return form[0].shape[0], form[1].shape[1]
    return form.shape[0], form.shape[1]


def dense_of(form: Form) -> Tensor:
    """The update itself (O, I), in the precision of its form."""
    return form[0] @ form[1] if isinstance(form, tuple) else form
