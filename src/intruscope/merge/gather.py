"""What several fine-tunes changed, lined up by module: matrices, heads, and biases and norms. From headers.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.keys import PEFT_PREFIX, sort_keys
from intruscope.adapters.kind import DecodedUpdate
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import MalformedInput, UnsupportedFormat, printable
from intruscope.weights.heads import is_word_matrix
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import LowRankUpdate
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.source import ModelSource
from intruscope.writing.changed import changed_tensors, differs, tensor_twins
from intruscope.writing.modules import JoinedUpdate, modules_of
from intruscope.writing.naming import AdapterNames, adapter_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.opening import OpenedPair
    from intruscope.adapters.several import FineTunes
    from intruscope.linalg.forms import Form
    from intruscope.weights.matrices import StoredUpdate
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView
    from intruscope.writing.modules import TargetModule

_VECTOR = "a vector, not a matrix"


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A bias or norm that one fine-tune trained.

    Attributes:
        tensor: As stored.
        scaling: Of a bias that is added to the base's (``lora_bias``); None where it replaces the base's.
    """

    tensor: StoredTensor
    scaling: float | None = None

    def delta(self, base: StoredTensor) -> torch.Tensor:
        """Its update in float64, flat."""
        numbers = self.tensor.read().double().flatten()
        return numbers - base.read().double().flatten() if self.scaling is None else self.scaling * numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One fine-tune.

    Attributes:
        label: Its short name.
        source: Adapter or checkpoint, opened.
        opened: The same with the base.
        names: How its model names modules.
        modules: Those with matrices that are merged, by the base's name.
        saved: Heads and other modules saved whole that the base has too, by the base's name.
        heads: Names of all modules saved whole, those that the base lacks included.
        saved_vectors: Their biases, and norms saved whole, as far as the base has them, by its tensor.
        vectors: Other biases and norms, likewise.
    """

    label: str
    source: ModelSource | AdapterSource
    opened: OpenedPair
    names: AdapterNames
    modules: Mapping[str, TargetModule]
    saved: Mapping[str, TargetModule]
    heads: tuple[str, ...]
    saved_vectors: Mapping[str, Vector]
    vectors: Mapping[str, Vector]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One module of the base, as each fine-tune has it.

    Attributes:
        name: In the base's files.
        view: The base's matrix.
        targets: One per fine-tune; None where it leaves the module alone.
        ranks: See :class:`intruscope.merge.records.MergedModule`.
        thin: Whether every update has factors.
    """

    name: str
    view: TensorView
    targets: tuple[TargetModule | None, ...]
    ranks: tuple[int | None, ...]
    thin: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.view.shape

    @property
    def first(self) -> TargetModule:
        """The module in the first fine-tune that changes it."""
        return next(target for target in self.targets if target is not None)


def gather(tunes: FineTunes, *, for_adapter: bool) -> tuple[tuple[Member, ...], tuple[Row, ...]]:
    """Line up what the fine-tunes changed.

    Args:
        tunes: Opened.
        for_adapter: Whether names of modules in memory are needed for full checkpoints too.

    Returns:
        The fine-tunes, and the modules in the order of the base.

    Raises:
        UnsupportedFormat: a vocabulary was resized.
        MalformedInput: a file changed since it was opened.
    """
    members = tuple(
        _member(opened, label, for_adapter=for_adapter)
        for opened, label in zip(tunes.members, tunes.labels, strict=True)
    )
    place = {tensor: at for at, tensor in enumerate(tunes.base.tensors)}
    views = {name: target.whole.base for member in members for name, target in member.modules.items()}
    ordered = sorted(views, key=lambda name: place.get(views[name].tensor.name, len(place)))
    probe = _Probe()
    rows = []
    for name in ordered:
        targets = tuple(member.modules.get(name) for member in members)
        thin = [
            target is None or probe.is_thin(target, member)
            for target, member in zip(targets, members, strict=True)
        ]
        ranks = tuple(
            0 if target is None else _rank(target.whole.update) if is_thin else None
            for target, is_thin in zip(targets, thin, strict=True)
        )
        rows.append(Row(name=name, view=views[name], targets=targets, ranks=ranks, thin=all(thin)))
    return members, tuple(rows)


def load_form(target: TargetModule | None, view: TensorView, label: str) -> Form:
    """One update in float64: factors with the scaling included, or dense.

    Args:
        target: The module in one fine-tune; None for no update, which is factors of rank 0.
        view: The base's matrix.
        label: Of the fine-tune, for messages.

    Raises:
        MalformedInput: it holds NaN or infinity, or a file changed.
    """
    import torch

    rows, columns = view.shape
    if target is None:
        return torch.zeros(rows, 0, dtype=torch.float64), torch.zeros(0, columns, dtype=torch.float64)
    update = target.whole.update
    # Of the base that LoRA's factors go on, only the shape is asked for.
    base_OI = view.load().double() if _needs_base(update) else torch.empty(view.shape, device="meta")
    loaded = update.load(base_OI)
    form: Form
    if isinstance(loaded, LowRankUpdate):
        form = (loaded.left_OR.double(), loaded.right_RI.double())
    else:
        form = loaded.tuned_OI.double() - base_OI
    # A sum is NaN or infinite where any number is, at a fraction of the cost of asking each.
    if not all(bool(part.sum().isfinite()) for part in (form if isinstance(form, tuple) else (form,))):
        raise not_finite(target.name, label)
    return form


def not_finite(name: str, label: str) -> MalformedInput:
    """The error for an update with NaN or infinity in it."""
    return MalformedInput(
        f"the update of {printable(name)} in {printable(label)} holds NaN or infinite numbers",
        remedy="save this fine-tune again, or leave it out",
    )


def _member(opened: OpenedPair, label: str, *, for_adapter: bool) -> Member:
    source = opened.tuned
    if any(finding.code == "resized" for finding in opened.pairing.findings):
        raise UnsupportedFormat(
            f"{printable(label)} has a resized vocabulary, whose new words have no place in the base",
            remedy="call resize_token_embeddings with the base's size on it and save it, or leave it out",
        )
    if for_adapter or not isinstance(source, ModelSource):
        names = adapter_names(opened.base, source)
    else:
        names = AdapterNames(task=None, is_known=False)
    modules = {
        target.name: _without_copy(target)
        for target in modules_of(opened.pairing, opened.base, source, names)
    }
    found = (
        _Saved.of_adapter(opened, source, modules)
        if not isinstance(source, ModelSource)
        else _Saved.of_checkpoint(opened, modules)
    )
    return Member(
        label=label,
        source=source,
        opened=opened,
        names=names,
        modules={n: target for n, target in modules.items() if n not in found.heads | found.untouched},
        saved={name: target for name, target in modules.items() if name in found.heads},
        heads=tuple(sorted(found.heads)),
        saved_vectors={n: v for n, v in found.vectors.items() if n.rpartition(".")[0] in found.heads},
        vectors={n: v for n, v in found.vectors.items() if n.rpartition(".")[0] not in found.heads},
    )


def _without_copy(target: TargetModule) -> TargetModule:
    """The module without the base's own weight, which PEFT stores beside an embedding's factors."""
    update = target.whole.update
    if not isinstance(update, LoraUpdate) or update.replaced is None:
        return target
    if differs(update.view.tensor, update.replaced.tensor):
        return target
    update = replace(update, replaced=None)
    pairs = tuple(replace(pair, update=update) for pair in target.pairs)
    return replace(target, whole=replace(target.whole, update=update), pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """Modules saved whole (by the base's name where it has them), and vectors by the base's tensor.

    ``untouched`` are heads of a checkpoint that are still the base's: nobody need choose between them.
    """

    heads: frozenset[str]
    vectors: dict[str, Vector]
    untouched: frozenset[str] = frozenset()

    @classmethod
    def of_adapter(
        cls, opened: OpenedPair, adapter: AdapterSource, modules: Mapping[str, TargetModule]
    ) -> _Saved:
        stored, skipped = sort_keys(adapter)
        named = {target.module: name for name, target in modules.items()}
        heads = {named.get(name, name) for name, module in stored.items() if "saved" in module.roles}
        matrices = base_matrices(opened.base).matrices
        vectors: dict[str, Vector] = {}
        for vector in trained_vectors(adapter, opened.base):
            own = vector.tensor.name.removeprefix(PEFT_PREFIX).rpartition(".")[0]
            if vector.target is None:
                heads.add(own)
                continue
            owner = vector.target.rpartition(".")[0]
            views = matrices.get(f"{owner}.weight", ())
            if skipped[vector.tensor.name] == _VECTOR or any(map(_is_head, views)):
                heads.add(owner)
            scaling = None if vector.module is None else _scaling(modules[named[vector.module]])
            vectors[vector.target] = Vector(tensor=vector.tensor, scaling=scaling)
        return cls(heads=frozenset(heads), vectors=vectors)

    @classmethod
    def of_checkpoint(cls, opened: OpenedPair, modules: Mapping[str, TargetModule]) -> _Saved:
        assert isinstance(opened.tuned, ModelSource)
        twins = tensor_twins(opened.base, opened.tuned, opened.pairing)
        changed = changed_tensors(opened.base, opened.tuned, opened.pairing)
        vectors = {name: Vector(tensor=twins[name]) for name in changed if len(twins[name].shape) < 2}
        moved = {name.rpartition(".")[0] for name in vectors}
        untouched: set[str] = set()
        heads = {e.tensor.removesuffix(".weight") for e in opened.pairing.coverage if e.head == "new"}
        for name, target in modules.items():
            if _is_head(target.whole.base):
                is_moved = name in moved or _is_changed(target)
                (heads if is_moved else untouched).add(name)
        return cls(heads=frozenset(heads), vectors=vectors, untouched=frozenset(untouched))


def _is_changed(target: TargetModule) -> bool:
    """Whether a matrix of a checkpoint differs from the base's."""
    update = target.whole.update
    return not isinstance(update, CheckpointUpdate) or differs(target.whole.base.tensor, update.tuned.tensor)


def _is_head(view: TensorView) -> bool:
    """Whether a matrix of the base is the head of a task; heads of words are as general as the body."""
    return view.kind == "head" and not is_word_matrix(view)


def _scaling(target: TargetModule) -> float:
    """S of a module with LoRA factors."""
    update = _parts(target.whole.update)[0]
    assert isinstance(update, LoraUpdate)
    return update.scaling


def _parts(update: StoredUpdate) -> tuple[StoredUpdate, ...]:
    return tuple(part for _, part in update.parts) if isinstance(update, JoinedUpdate) else (update,)


def _needs_base(update: StoredUpdate) -> bool:
    return not all(
        isinstance(part, ExpertUpdate) or (isinstance(part, LoraUpdate) and part.is_low_rank)
        for part in _parts(update)
    )


def _rank(update: StoredUpdate) -> int | None:
    """Rank of the factors; None where the headers do not tell."""
    ranks = []
    downs = set()
    for part in _parts(update):
        if isinstance(part, LoraUpdate):
            ranks.append(part.down.shape[0] if not part.swapped else part.up.shape[1])
            downs.add(part.down.name)
        elif isinstance(part, ExpertUpdate):
            ranks.append(part.rank)
        else:
            return None
    return ranks[0] if len(downs) == 1 else sum(ranks)  # parts of one module share its factors


class _Probe:
    """Whether updates have factors. Of kinds other than LoRA one module is decoded to see."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], bool] = {}

    def is_thin(self, target: TargetModule, member: Member) -> bool:
        found = True
        for pair in target.pairs:
            update = pair.update
            if isinstance(update, DecodedUpdate):
                key = (member.label, update.kind)
                if key not in self._known:
                    self._known[key] = isinstance(update.load(pair.base.load().double()), LowRankUpdate)
                found &= self._known[key]
            else:
                found &= not _needs_base(update)
        return found
