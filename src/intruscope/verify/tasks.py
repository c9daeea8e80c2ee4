"""What workers are handed: a matrix to judge or a tensor to compare, known from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.kind import DecodedUpdate
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.verify.causes import ScaleFacts, scale_factors
from intruscope.verify.records import ModuleCheck
from intruscope.weights.matrices import DenseUpdate, StoredUpdate
from intruscope.weights.stored import DTYPE_BITS, TORCH_NAMES, StoredTensor
from intruscope.weights.views import TensorView

if TYPE_CHECKING:
    import torch

_WORKING_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class VectorUpdate(StoredUpdate):
    """A bias or norm that an adapter or a checkpoint trained: (size, 1).

    Attributes:
        tensor: The trained numbers.
        scaling: They are multiplied by this and added to the base (``lora_bias``); None if they replace it.
    """

    tensor: StoredTensor
    scaling: float | None = None

    def load(self, base_OI: torch.Tensor) -> DenseUpdate:
        """Read the numbers.

        Raises:
            MalformedInput: the file changed since planning.
        """
        values = self.tensor.read().reshape(-1, 1)
        if self.scaling is None:
            return DenseUpdate(tuned_OI=values)
        return DenseUpdate(tuned_OI=base_OI.double() + self.scaling * values.double())


@dataclass(frozen=True, kw_only=True)
class Term:
    """One update that a merged matrix should contain.

    Attributes:
        update: What the adapter does to the base matrix.
        weight: The adapter's weight in the merge.
        flipped: The update belongs to a module that uses the same matrix in the other orientation (a head and
            an embedding that share it).
    """

    update: StoredUpdate
    weight: float
    flipped: bool = False

    @property
    def source(self) -> str:
        """Where a tuned matrix comes from; see :class:`intruscope.verify.rounding.Whole`."""
        return term_source(self.update)


def term_source(update: StoredUpdate) -> str:
    """Where an update's tuned matrix comes from; see :class:`intruscope.verify.rounding.Whole`."""
    if isinstance(update, LoraUpdate):
        return "dora"
    return "computed" if isinstance(update, DecodedUpdate) else "stored"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One matrix or vector that adapters change.

    Attributes:
        name, kind, layer: What the report calls it.
        base: The matrix before; None for a new one, which the adapters hold whole.
        merged: The matrix after.
        terms: What should have been added.
        foreign: What modules that share the tensor add to it.
        scales: How each adapter scales its factors; empty for other updates.
    """

    name: str
    kind: str
    layer: int | None
    base: TensorView | None
    merged: TensorView
    terms: tuple[Term, ...]
    foreign: tuple[Term, ...] = ()
    scales: tuple[ScaleFacts, ...] = ()

    @property
    def candidate_factors(self) -> tuple[float, ...]:
        """Multiples of the update to try where only a replay can tell."""
        return tuple(scale_factors(self.scales))

    @property
    def estimated_bytes(self) -> int:
        """Peak memory of judging it: both sides, the updates, and the pieces that are computed with."""
        num_rows, num_columns = self.merged.shape
        dense = 8 * num_rows * num_columns * (1 + len(self.terms) + len(self.foreign))
        return 2 * self.merged.estimated_bytes + dense + _WORKING_BYTES

    def open(self) -> ModuleCheck:
        """What is known before it is judged: an open record."""
        return ModuleCheck(
            name=self.name,
            kind=self.kind,
            layer=self.layer,
            shape=self.merged.shape,
            dtype=self.merged.tensor.dtype,
            status="open",
        )

    def whole(self) -> Check | None:
        """The fused matrix that this is a part of, if it is square; None otherwise."""
        if self.base is None or self.base.rows is None or len(set(self.base.whole_shape)) != 1:
            return None
        terms = tuple(replace(term, update=_of_all_rows(term.update)) for term in self.terms)
        base, merged = replace(self.base, rows=None), replace(self.merged, rows=None)
        return replace(self, base=base, merged=merged, terms=terms)


def _of_all_rows(update: Any) -> Any:
    """An update of a part, as that of the whole fused matrix."""
    changes: dict[str, Any] = {}
    for each in fields(update):
        value = getattr(update, each.name)
        if isinstance(value, TensorView):
            changes[each.name] = replace(value, rows=None)
        elif each.name == "rows" and isinstance(update, ExpertUpdate):
            changes[each.name] = None
    return replace(update, **changes)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """A tensor, or one matrix of a fused tensor, that should be the same in both models.

    Attributes:
        name: What the report calls it.
        base, merged: Both sides; matrices as views, everything else as tensors.
        also: What the merged side may be equal to as well: the matrix of words that it shared.
    """

    name: str
    base: StoredTensor | TensorView
    merged: StoredTensor | TensorView
    also: StoredTensor | None = None

    @property
    def estimated_bytes(self) -> int:
        """Peak memory of comparing it."""
        sizes = [each.tensor if isinstance(each, TensorView) else each for each in (self.base, self.merged)]
        return sum(2 * each.num_bytes + 8 * each.num_bytes * 8 // DTYPE_BITS[each.dtype] for each in sizes)


def stored_dtypes(update: Any) -> tuple[str, ...]:
    """The dtypes in which an update's own numbers are stored, by safetensors' names."""
    found: dict[str, None] = {}
    waiting = [getattr(update, each.name) for each in fields(update) if each.name != "view"]
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorView):
            value = value.tensor
        if isinstance(value, StoredTensor):
            if value.dtype in TORCH_NAMES:
                found[value.dtype] = None
        elif isinstance(value, tuple):
            waiting.extend(value)
        elif is_dataclass(value):
            waiting.extend(getattr(value, each.name) for each in fields(value))
    return tuple(found)
