"""What the weights of a merge say before it is run: norm, inflation, intruders, and how two updates relate.

Shape suffixes: O out, I in, R rank, K leading vectors.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.linalg.forms import dense_of
from intruscope.linalg.overlap import outside_span
from intruscope.studies.weights import EPSILON, K

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from intruscope.linalg.dense import DenseSides
    from intruscope.linalg.forms import Form
    from intruscope.studies.merging_rules import Forms


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseMatrices:
    """The matrices of a base that adapters change.

    Attributes:
        values: By name, (O, I), float64.
        sides: Decompositions of each, kept from one update to the next.
    """

    values: Mapping[str, Tensor]
    sides: Mapping[str, DenseSides] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """Frobenius norm over all matrices."""
        return math.sqrt(sum(float(value.square().sum()) for value in self.values.values()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """One update, merged or of one adapter.

    Attributes:
        norm: Frobenius norm over all matrices.
        largest: By matrix the largest singular value of the update.
        intruders: By matrix the left singular vectors of the changed matrix that are intruders, (O, n).
    """

    norm: float
    largest: Mapping[str, float]
    intruders: Mapping[str, Tensor]

    @property
    def num_intruders(self) -> int:
        """Intruders over all matrices."""
        return sum(vectors.shape[1] for vectors in self.intruders.values())


def examined(base: BaseMatrices, forms: Forms, strength: float = 1.0) -> Examined:
    """Look at an update of a base.

    Args:
        base: Its matrices.
        forms: The update of each.
        strength: What it is multiplied by.
    """
    from intruscope.linalg.analysis import analyse

    square, largest, intruders = 0.0, {}, {}
    for name, form in forms.items():
        values = _singular_values(form) * strength
        square += float(values.square().sum())
        largest[name] = float(values.max())
        given: dict[str, Any] = (
            {"left_OR": strength * form[0], "right_RI": form[1]}
            if isinstance(form, tuple)
            else {"tuned_OI": base.values[name] + strength * form}
        )
        found = analyse(base.values[name], **given, k=K, deciding=EPSILON, shared=base.sides.get(name))
        intruders[name] = found.spectrum.left_MK[:, found.is_intruder(EPSILON)]
    return Examined(norm=math.sqrt(square), largest=largest, intruders=intruders)


def _singular_values(form: Form) -> Tensor:
    import torch

    from intruscope.linalg.lowrank import low_rank_svd

    return low_rank_svd(*form)[1] if isinstance(form, tuple) else torch.linalg.svdvals(form)


def merge_figures(base: BaseMatrices, merge: Examined, parts: Sequence[Examined]) -> dict[str, float]:
    """A merge beside the adapters it is made of.

    Args:
        base: Their base.
        merge: The merge.
        parts: The adapters.

    Returns:
        ``norm`` (of the update relative to the base), ``inflation`` (of the largest singular value of the
        update over the largest of the parts, mean over matrices), ``intruders``, and ``merged_only``:
        intruders that the intruders of all parts in the same matrix do not span (``outside_span``), as
        ``intruscope compare`` counts new ones.
    """
    import torch

    inflation = [value / max(part.largest[name] for part in parts) for name, value in merge.largest.items()]
    return {
        "norm": merge.norm / base.norm,
        "inflation": statistics.fmean(inflation),
        "intruders": merge.num_intruders,
        "merged_only": sum(
            int(outside_span(vectors, torch.cat([part.intruders[name] for part in parts], dim=1)).sum())
            for name, vectors in merge.intruders.items()
        ),
    }


def pair_figures(first: Forms, second: Forms) -> dict[str, float]:
    """How the updates of two adapters relate, over all matrices.

    Returns:
        ``cosine`` of the two updates, and ``sign_conflict``: of the entries that neither leaves at zero, the
        share with opposite signs.
    """
    product = square = other_square = 0.0
    opposite = shared = 0
    for name, form in first.items():
        a_OI, b_OI = dense_of(form), dense_of(second[name])
        products = a_OI * b_OI
        product += float(products.sum())
        square, other_square = square + float(a_OI.square().sum()), other_square + float(b_OI.square().sum())
        opposite, shared = opposite + int((products < 0).sum()), shared + int((products != 0).sum())
    return {
        "cosine": product / math.sqrt(square * other_square),
        "sign_conflict": opposite / shared,
    }
