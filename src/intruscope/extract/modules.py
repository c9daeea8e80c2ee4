"""Which modules get factors: those that PEFT can put a LoRA on, whole, under the names that it looks for.

A fused projection is one module and one pair of factors, whatever a scan calls its parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.adapters.updates import LoraUpdate, SavedUpdate, TokensUpdate
from intruscope.errors import UsageError
from intruscope.repair.naming import matching
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.views import TensorView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.folder import AdapterSource
    from intruscope.extract.naming import AdapterNames
    from intruscope.weights.matrices import MatrixPair, Pairing, StoredUpdate
    from intruscope.weights.source import ModelSource

ModuleKind = Literal["linear", "conv1d", "embedding", "conv"]
_INNER = frozenset({"lora_A", "lora_embedding_A", "modules_to_save", "base_layer", "weight"})


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module of the base that the fine-tune may have changed.

    Attributes:
        name: As the base stores it.
        module: As the tuned model calls it.
        kind: What PEFT makes of it; None where it cannot adapt it.
        reason: Why not; empty where it can.
        can_be_whole: PEFT can store it whole instead (``modules_to_save``).
        kernel: Of a convolution, with the inputs per group before it: the shape of A after its rank.
        whole: The module's matrix and its update, as one pair.
        pairs: As a scan sees it: several for a fused one.
    """

    name: str
    module: str
    kind: ModuleKind | None
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
    def num_numbers(self) -> int:
        """In one direction of its factors."""
        return sum(self.shape)


def modules_of(
    pairing: Pairing, base: ModelSource, tuned: ModelSource | AdapterSource, names: AdapterNames
) -> tuple[Module, ...]:
    """All modules with matrices on both sides, in the order of the base.

    Args:
        pairing: Of both.
        base: Opened.
        tuned: Opened.
        names: What the model calls them.
    """
    grouped: dict[tuple[str, int | None], list[MatrixPair]] = {}
    for pair in pairing.pairs:
        assert isinstance(pair.base, TensorView)
        # Not by the tensor: an embedding and a head may share one.
        grouped.setdefault((pair.name.partition("[")[0], pair.base.expert), []).append(pair)
    return tuple(_module(pairs, base, tuned, names) for pairs in grouped.values())


def chosen(modules: Sequence[Module], which: str) -> tuple[Module, ...]:
    """The modules that a person means.

    Args:
        modules: All of them.
        which: ``linear``: linear layers of the blocks, which every server takes. ``all``: whatever PEFT can
            adapt. Or names divided by commas, ``*`` standing for anything.

    Raises:
        UsageError: no adaptable module is meant.
    """
    able = tuple(module for module in modules if module.kind is not None)
    if which in ("linear", "all"):
        linear = tuple(m for m in able if m.in_scope and m.kind in ("linear", "conv1d"))
        if found := linear if which == "linear" else able:
            return found
        raise UsageError(
            f"got no matrix that is meant by '{which}', expected one that PEFT can adapt",
            remedy="name others with --which; intruscope layers BASE lists them",
        )
    names = [module.name for module in able]
    wanted = {name for pattern in which.split(",") for name in matching(pattern.strip(), names)}
    return tuple(module for module in able if module.name in wanted)


def _module(
    pairs: list[MatrixPair], base: ModelSource, tuned: ModelSource | AdapterSource, names: AdapterNames
) -> Module:
    view = pairs[0].base
    assert isinstance(view, TensorView)
    name = pairs[0].name.partition("[")[0]
    update = _whole_update(pairs[0].update)
    whole_view = replace(view, name=name, rows=None)
    whole = replace(
        pairs[0],
        name=name,
        base=whole_view,
        update=update,
        estimated_bytes=whole_view.estimated_bytes + max(pair.estimated_bytes for pair in pairs),
    )
    stored = _tuned_name(update, name)
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
    return Module(
        name=name,
        module=called,
        kind=kind,
        reason=reason,
        can_be_whole=not (missing or is_cut or shared or _is_part(view)),
        kernel=view.tensor.shape[1:] if kind == "conv" else (),
        whole=whole,
        pairs=tuple(pairs),
    )


def _whole_update(update: StoredUpdate) -> StoredUpdate:
    """The update of all rows of a fused matrix."""
    if isinstance(update, (CheckpointUpdate, SavedUpdate)):
        return replace(update, tuned=replace(update.tuned, rows=None))
    if isinstance(update, LoraUpdate):
        replaced = update.replaced
        return replace(
            update,
            view=replace(update.view, rows=None),
            replaced=None if replaced is None else replace(replaced, rows=None),
        )
    return update


def _is_part(view: TensorView) -> bool:
    """Whether the tensor is not the weight of a module that stands by itself."""
    name = view.tensor.name
    return view.expert is not None or ".experts." in name or not name.endswith(".weight")


def _kind(view: TensorView, update: StoredUpdate) -> tuple[ModuleKind | None, str]:
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


def _tuned_name(update: StoredUpdate, name: str) -> str:
    """Of the module, as the tuned side stores it; the base's where it stores factors without PEFT's names."""
    if isinstance(update, CheckpointUpdate):
        return update.tuned.tensor.name.removesuffix(".weight")
    key = ""
    if isinstance(update, LoraUpdate):
        key = update.down.name
    elif isinstance(update, SavedUpdate):
        key = update.tuned.tensor.name
    if not key.startswith(PEFT_PREFIX):
        return name
    words = key.removeprefix(PEFT_PREFIX).split(".")
    return ".".join(words[: next((i for i, word in enumerate(words) if word in _INNER), len(words))])
