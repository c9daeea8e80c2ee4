"""The tensors of one adapted module against the base matrix they are for: they fit, or the pair is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from intruscope.adapters.kind import OTHER_BASE_REMEDY
from intruscope.adapters.updates import SavedUpdate, TokensUpdate
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, printable
from intruscope.weights.heads import is_word_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.config import ModuleScale
    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.kind import AdaptedModule
    from intruscope.weights.matrices import StoredUpdate
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

_RESTORE_REMEDY = "restore the adapter's own config"


class Fitted(NamedTuple):
    """The matrices of one base tensor that are compared, and a remark for the ledger.

    ``matrices`` is empty when the whole tensor is skipped, for the reason that ``note`` gives.
    """

    matrices: tuple[tuple[TensorView, StoredUpdate], ...]
    note: str = ""


def fit_updates(
    module: AdaptedModule,
    views: tuple[TensorView, ...],
    adapter: AdapterSource,
    scales: Mapping[str, ModuleScale],
) -> Fitted:
    """One update for each matrix of a base tensor.

    Args:
        module: What the adapter holds of one module.
        views: The matrices of its base tensor; several when that is fused.
        adapter: Where it is from.
        scales: What the config gives each module with factors.

    Returns:
        The pairs. Of a resized vocabulary only the words that both sides have.

    Raises:
        MalformedInput: ranks or magnitudes contradict the config.
        ShapeMismatch: a tensor does not fit.
        UnsupportedFormat: a dtype that cannot be decoded.
    """
    check_decodable(module)
    roles = module.roles
    dense = roles.get("saved") or roles.get("replaced")
    note = ""
    if dense is not None and dense.shape != views[0].tensor.shape:
        common = _common_words(views[0], dense)
        note = f"{list(dense.shape)} in the adapter, {list(views[0].tensor.shape)} in the base"
        if common is None:
            return Fitted((), f"a {views[0].kind} of another size: {note}")
        note = f"resized: {note}; the first {common} words are compared"
        views = tuple(replace(view, tensor=view.tensor.leading(common)) for view in views)
        # An embedding with factors is cut when it is read: DoRA's norms are over all of its words.
        cut_later = views[0].kind == "embedding" and module.has_factors
        of_words = set() if cut_later else {"saved", "replaced", "up", "magnitude"}
        roles = {role: t.leading(common) if role in of_words else t for role, t in roles.items()}
        module = replace(module, roles=roles)
    if "saved" in roles:
        updates: list[StoredUpdate] = [
            SavedUpdate(tuned=replace(view, tensor=roles["saved"])) for view in views
        ]
    elif "tokens" in roles:
        updates = [_tokens_update(module, view, adapter) for view in views]
    elif not module.has_factors:
        updates = [SavedUpdate(tuned=replace(view, tensor=roles["replaced"])) for view in views]
    else:
        updates = [adapter.kind.update(module, view, adapter, scales.get(module.name)) for view in views]
    return Fitted(tuple(zip(views, updates, strict=True)), note)


def _common_words(view: TensorView, dense: StoredTensor) -> int | None:
    """How many words an embedding or head has on both sides; None for a head of other classes."""
    whole = view.tensor.shape
    if view.kind not in ("embedding", "head"):
        raise mismatch(dense, f"{list(whole)} like the base's {printable(view.tensor.name)}")
    if not is_word_matrix(view) or len(dense.shape) != 2 or len(whole) != 2 or dense.shape[1] != whole[1]:
        return None
    return min(dense.shape[0], whole[0])


def check_decodable(module: AdaptedModule) -> None:
    """Refuse an adapter whose numbers need a scale.

    Raises:
        UnsupportedFormat: a tensor is not float64, float32, float16 or bfloat16.
    """
    for tensor in module.roles.values():
        if not tensor.decodable and not tensor.is_integer:
            fact = f"the dtype is {tensor.dtype}, but only F64, F32, F16 and BF16 are read here"
            raise UnsupportedFormat(
                fact, remedy="save the adapter in float32", file=tensor.path, tensor=tensor.name
            )


def check_rank(rank: int, configured: int, down: StoredTensor) -> None:
    """Refuse factors of another rank than the config's: the scaling would be wrong.

    Raises:
        MalformedInput: they differ.
    """
    if configured != rank:
        fact = f"the factors have rank {rank}, but the config says {configured}"
        raise MalformedInput(fact, remedy=_RESTORE_REMEDY, file=down.path, tensor=down.name)


def mismatch(tensor: StoredTensor, expected: str) -> ShapeMismatch:
    """The error for a tensor of another shape than its base's matrix asks for."""
    fact = f"the shape is {list(tensor.shape)}; it must be {expected}"
    return ShapeMismatch(fact, remedy=OTHER_BASE_REMEDY, file=tensor.path, tensor=tensor.name)


def _tokens_update(module: AdaptedModule, view: TensorView, adapter: AdapterSource) -> TokensUpdate:
    rows = module.roles["tokens"]
    groups = adapter.config.token_indices if adapter.config is not None else {}
    indices = next(
        (
            i
            for name, i in groups.items()
            if not name or module.name == name or module.name.endswith(f".{name}")
        ),
        (),
    )
    width = view.shape[0] if view.transposed else view.shape[1]
    if not is_word_matrix(view) or rows.shape != (len(indices), width):
        raise mismatch(rows, f"[{len(indices)}, {width}], a row for each token that the config names")
    replaced = module.roles.get("replaced")
    return TokensUpdate(
        rows=rows,
        indices=indices,
        view=view,
        replaced=None if replaced is None else replace(view, tensor=replaced),
    )
