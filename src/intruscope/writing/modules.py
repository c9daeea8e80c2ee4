"""Which modules can get LoRA factors, and the names under which PEFT looks for them.

A fused projection is one module and one pair of factors, whatever a scan calls its parts.

Shape suffixes: O out, I in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Literal

from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.adapters.updates import SavedUpdate, TokensUpdate
from intruscope.errors import UsageError
from intruscope.weights.matrices import DenseUpdate, LowRankUpdate, MatrixPair, StoredUpdate
from intruscope.weights.names import matching
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.matrices import Pairing
    from intruscope.weights.views import RowSelection, TensorView
    from intruscope.writing.naming import AdapterNames

LayerKind = Literal["linear", "conv1d", "embedding", "conv"]


@dataclass(frozen=True, kw_only=True)
class TargetModule:
    """One module of the base that the fine-tune may have changed.

    Attributes:
        name: As the base stores it.
        module: As the tuned model calls it.
        kind: What PEFT makes of it; None if PEFT cannot adapt it.
        reason: Why not; empty if it can.
        can_be_whole: PEFT can store it whole instead (``modules_to_save``).
        kernel: For a convolution, the inputs per group and the kernel: the shape of A after its rank.
        whole: The module's matrix and its update, as one pair.
        pairs: As a scan sees it: several for a fused one.
    """

    name: str
    module: str
    kind: LayerKind | None
    reason: str
    can_be_whole: bool
    kernel: tuple[int, ...]
    whole: MatrixPair
    pairs: tuple[MatrixPair, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.whole.base.shape

    @property
    def in_scope(self) -> bool:
        """Whether it holds linear layers of the blocks, which a scan's totals count."""
        return self.whole.scope == "paper"

    @property
    def direction_size(self) -> int:
        """Parameters in one direction of its factors."""
        return sum(self.shape)


@dataclass(frozen=True, kw_only=True)
class JoinedUpdate(StoredUpdate):
    """The updates of the parts of a fused matrix as one update of all its rows."""

    parts: tuple[tuple[RowSelection, StoredUpdate], ...]

    def load(self, base_OI: torch.Tensor) -> LowRankUpdate | DenseUpdate:
        """Read every part.

        Raises:
            MalformedInput: a file changed since planning.
        """
        import torch

        loaded = [(rows, update.load(rows.select(base_OI))) for rows, update in self.parts]
        thin = [(rows, update) for rows, update in loaded if isinstance(update, LowRankUpdate)]
        if len(thin) == len(loaded):
            lefts = [rows.lift(update.left_OR, len(base_OI)) for rows, update in thin]
            rights = [update.right_RI for _, update in thin]
            if all(torch.equal(rights[0], right) for right in rights[1:]):  # of one pair of factors
                return LowRankUpdate(left_OR=sum(lefts[1:], start=lefts[0]), right_RI=rights[0])
            return LowRankUpdate(left_OR=torch.cat(lefts, dim=1), right_RI=torch.cat(rights))
        dense = [(rows, _tuned(update, rows.select(base_OI))) for rows, update in loaded]
        dtypes = {tuned_OI.dtype for _, tuned_OI in dense}
        if sum(rows.num_rows for rows, _ in dense) < len(base_OI):
            dtypes.add(base_OI.dtype)
        whole_OI = base_OI.to(reduce(torch.promote_types, dtypes), copy=True)
        for rows, tuned_OI in dense:
            whole_OI[rows.indices()] = tuned_OI.to(whole_OI.dtype)
        return DenseUpdate(tuned_OI=whole_OI)


def _tuned(update: LowRankUpdate | DenseUpdate, base_OI: torch.Tensor) -> torch.Tensor:
    if isinstance(update, DenseUpdate):
        return update.tuned_OI
    return base_OI + update.left_OR.to(base_OI.dtype) @ update.right_RI.to(base_OI.dtype)


def modules_of(
    pairing: Pairing, base: ModelSource, tuned: ModelSource | AdapterSource, names: AdapterNames
) -> tuple[TargetModule, ...]:
    """All modules with matrices on both sides, in the order of the base.

    Args:
        pairing: Their paired matrices.
        base: The opened base.
        tuned: The opened tuned model.
        names: How the model names its modules.
    """
    grouped: dict[str, list[MatrixPair]] = {}
    for pair in pairing.pairs:
        grouped.setdefault(_whole_name(pair.base), []).append(pair)
    keys: dict[str, list[str]] = {}
    for entry in pairing.coverage:
        for matrix in entry.matrices if entry.origin != "base" else ():
            keys.setdefault(matrix, []).append(entry.tensor)
    return tuple(
        _module(name, pairs, base, tuned, names, keys.get(pairs[0].name, []))
        for name, pairs in grouped.items()
    )


def chosen(modules: Sequence[TargetModule], which: str) -> tuple[TargetModule, ...]:
    """The modules that a selection names.

    Args:
        modules: All of them.
        which: ``linear``: linear layers of the blocks, which every server takes. ``all``: whatever PEFT can
            adapt. Or names separated by commas, with ``*`` as a wildcard.

    Raises:
        UsageError: no module that PEFT can adapt is selected.
    """
    able = tuple(module for module in modules if module.kind is not None)
    if which in ("linear", "all"):
        linear = tuple(m for m in able if m.in_scope and m.kind in ("linear", "conv1d"))
        if found := linear if which == "linear" else able:
            return found
        raise UsageError(
            f"'{which}' selects no matrix that PEFT can adapt",
            remedy="select others by name with --which; intruscope layers BASE lists them",
        )
    names = [module.name for module in able]
    wanted = {name for pattern in which.split(",") for name in matching(pattern.strip(), names)}
    return tuple(module for module in able if module.name in wanted)


def _whole_name(view: TensorView) -> str:
    """Name of the whole matrix that a view is part of. A tied head has its own, not its embedding's."""
    return view.name if view.rows is None else view.name.rpartition("[")[0]


def _module(
    name: str,
    pairs: list[MatrixPair],
    base: ModelSource,
    tuned: ModelSource | AdapterSource,
    names: AdapterNames,
    keys: Sequence[str],
) -> TargetModule:
    view, update = pairs[0].base, pairs[0].update
    whole_view = replace(view, name=name, rows=None)
    whole = replace(
        pairs[0],
        name=name,
        base=whole_view,
        update=_whole_update(pairs),
        estimated_bytes=whole_view.estimated_bytes + max(pair.estimated_bytes for pair in pairs),
    )
    stored = _tuned_name(name, keys, is_adapter=not isinstance(tuned, ModelSource))
    called = names.of(f"{stored}.weight").removesuffix(".weight")
    missing = names.why_missing(f"{stored}.weight")
    tied = names.aliases.get(f"{called}.weight", ())
    is_cut = _is_cut(view, update, base, tuned)
    shared = isinstance(update, CheckpointUpdate) and update.tuned.is_stand_in
    kind, reason = _kind(view, update)
    if kind is not None and missing:
        kind, reason = None, missing
    elif shared:
        kind, reason = None, f"the tuned model shares its matrix with {stored}, which is stored once"
    elif kind is not None and is_cut:
        kind, reason = None, "a resized vocabulary, which factors of the base's size cannot hold"
    elif kind is not None and tied:
        other = next(each for each in tied if each != f"{called}.weight").removesuffix(".weight")
        kind, reason = None, f"tied to {other}: a merge would add its factors twice"
    return TargetModule(
        name=name,
        module=called,
        kind=kind,
        reason=reason,
        can_be_whole=not (missing or is_cut or shared or _is_part(view)),
        kernel=view.tensor.shape[1:] if kind == "conv" else (),
        whole=whole,
        pairs=tuple(pairs),
    )


def _whole_update(pairs: Sequence[MatrixPair]) -> StoredUpdate:
    parts = [(pair.base.rows, pair.update) for pair in pairs if pair.base.rows is not None]
    return JoinedUpdate(parts=tuple(parts)) if parts else pairs[0].update


def _is_part(view: TensorView) -> bool:
    """Whether the tensor is not the weight of a module that stands by itself."""
    name = view.tensor.name
    return view.expert is not None or ".experts." in name or not name.endswith(".weight")


def _kind(view: TensorView, update: StoredUpdate) -> tuple[LayerKind | None, str]:
    tensor = view.tensor
    if not tensor.name.endswith(".weight") and view.expert is None:
        return None, "a bare parameter, which PEFT's layers do not wrap"
    if _is_part(view):
        return None, "an expert: PEFT adapts all of a layer's as one parameter, which is not written"
    if isinstance(update, TokensUpdate):
        return None, "single words of an embedding"
    if view.kind == "router":
        return None, "a router, which PEFT adapts in some models only"
    if len(tensor.shape) > 2:
        return "conv", ""
    if view.kind == "embedding":
        return "embedding", ""
    return ("conv1d" if view.transposed else "linear"), ""


def _is_cut(
    view: TensorView, update: StoredUpdate, base: ModelSource, tuned: ModelSource | AdapterSource
) -> bool:
    """Whether only the words that both sides have were paired."""
    whole = base.tensors[view.tensor.name].shape != view.tensor.shape
    if isinstance(update, (CheckpointUpdate, SavedUpdate)):
        after = update.tuned.tensor
        whole |= tuned.tensors[after.name].shape != after.shape
    return whole


def _tuned_name(name: str, keys: Sequence[str], *, is_adapter: bool) -> str:
    """A module's name on the tuned side: the start of one of its keys that ends like the base's name.

    Args:
        name: As the base stores it.
        keys: The module's keys on the tuned side.
        is_adapter: Whether the tuned side is an adapter. Only PEFT's keys are names in memory; for others
            the base's name is used.
    """
    words = name.split(".")
    best, most = name, 0
    for key in keys:
        if is_adapter and not key.startswith(PEFT_PREFIX):
            continue
        parts = key.removeprefix(PEFT_PREFIX).split(".")
        for stop in range(1, len(parts) + 1):
            common = _common_end(parts[:stop], words)
            if common > most:
                best, most = ".".join(parts[:stop]), common
    return best


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((at for at, (one, two) in enumerate(pairs) if one != two), min(len(first), len(second)))
