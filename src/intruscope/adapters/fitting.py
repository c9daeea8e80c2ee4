"""The tensors of one adapted module against the base matrix they are for: they fit, or the pair is named."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from intruscope.adapters.updates import LoraUpdate, SavedUpdate, TokensUpdate
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, UsageError, printable
from intruscope.weights.heads import is_word_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.config import Strength
    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.keys import AdaptedModule
    from intruscope.weights.matrices import StoredUpdate
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

OTHER_BASE_REMEDY = "check that this adapter is for this base"
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
    strengths: Mapping[str, Strength],
) -> Fitted:
    """One update for each matrix of a base tensor.

    Args:
        module: What the adapter holds of one module.
        views: The matrices of its base tensor; several when that is fused.
        adapter: Where it is from.
        strengths: Of the config, for every low-rank module.

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
        cut_later = views[0].kind == "embedding" and "down" in roles
        of_words = set() if cut_later else {"saved", "replaced", "up", "magnitude"}
        roles = {role: t.leading(common) if role in of_words else t for role, t in roles.items()}
        module = replace(module, roles=roles)
    if "saved" in roles:
        updates: list[StoredUpdate] = [
            SavedUpdate(tuned=replace(view, tensor=roles["saved"])) for view in views
        ]
    elif "tokens" in roles:
        updates = [_tokens_update(module, view, adapter) for view in views]
    elif "down" not in roles:
        updates = [SavedUpdate(tuned=replace(view, tensor=roles["replaced"])) for view in views]
    else:
        strength = strengths.get(module.name)
        updates = [_lora_update(module, v, adapter, strength, resized=bool(note)) for v in views]
    return Fitted(tuple(zip(views, updates, strict=True)), note)


def _common_words(view: TensorView, dense: StoredTensor) -> int | None:
    """How many words an embedding or head has on both sides; None for a head of other classes."""
    whole = view.tensor.shape
    if view.kind not in ("embedding", "head"):
        raise _mismatch(dense, f"the shape {list(whole)} of the base's {printable(view.tensor.name)}")
    if not is_word_matrix(view) or len(dense.shape) != 2 or len(whole) != 2 or dense.shape[1] != whole[1]:
        return None
    return min(dense.shape[0], whole[0])


def check_decodable(module: AdaptedModule) -> None:
    """Refuse an adapter whose numbers need a scale.

    Raises:
        UnsupportedFormat: a tensor is not float64, float32, float16 or bfloat16.
    """
    for tensor in module.roles.values():
        if not tensor.decodable:
            fact = f"got the dtype {tensor.dtype}, expected F64, F32, F16 or BF16"
            raise UnsupportedFormat(
                fact, remedy="save the adapter in float32", file=tensor.path, tensor=tensor.name
            )


def check_rank(rank: int, told: int, down: StoredTensor) -> None:
    """Refuse factors of another rank than the config's: the scaling would be wrong.

    Raises:
        MalformedInput: they differ.
    """
    if told != rank:
        fact = f"got factors of rank {rank}, expected {told} as the config says"
        raise MalformedInput(fact, remedy=_RESTORE_REMEDY, file=down.path, tensor=down.name)


def _mismatch(tensor: StoredTensor, expected: str) -> ShapeMismatch:
    fact = f"got the shape {list(tensor.shape)}, expected {expected}"
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
        raise _mismatch(rows, f"[{len(indices)}, {width}], a row for each word that the config names")
    replaced = module.roles.get("replaced")
    return TokensUpdate(
        rows=rows,
        indices=indices,
        view=view,
        replaced=None if replaced is None else replace(view, tensor=replaced),
    )


def _lora_update(
    module: AdaptedModule,
    view: TensorView,
    adapter: AdapterSource,
    strength: Strength | None,
    *,
    resized: bool,
) -> LoraUpdate:
    down, up = module.roles["down"], module.roles["up"]
    enabled = adapter.config.enable_lora if adapter.config is not None else None
    num_groups = sum(enabled) if enabled is not None else 1
    if len(down.shape) < 2 or len(up.shape) < 2 or 0 in down.shape or 0 in up.shape:
        raise _mismatch(
            down if len(down.shape) < 2 or 0 in down.shape else up, "a factor with a rank of at least 1"
        )
    rank = up.shape[1]
    if view.kind == "conv" and down.shape[0] > rank and down.shape[0] % rank == 0:
        fact = f"got factors {list(down.shape)} and {list(up.shape)} of a grouped convolution, "
        fact += "which is not read, expected those of a plain one"
        remedy = "leave it out: PEFT cannot merge it either"
        raise UnsupportedFormat(fact, remedy=remedy, file=adapter.path, tensor=down.name)
    if down.shape[0] != rank * num_groups or math.prod(up.shape[2:]) != 1:
        raise _mismatch(up, f"[out, {down.shape[0] // num_groups}] to go with A of shape {list(down.shape)}")
    scaling = _scaling(rank, down, adapter, strength)
    num_out, num_in = up.shape[0], math.prod(down.shape[1:])
    if enabled is not None:
        if num_out % num_groups:
            raise _mismatch(up, f"rows that {num_groups} enabled parts share equally")
        num_out = num_out // num_groups * len(enabled)
    # An embedding's factors are (width, vocabulary) as our views of embeddings are. A Linear that is stored
    # under an embedding's name, or an embedding under another, is the other way round.
    swapped = module.is_embedding != (view.kind == "embedding") and view.expert is None
    expected = view.whole_shape[::-1] if swapped else view.whole_shape
    if resized and view.kind == "embedding" and not swapped:
        num_in = min(num_in, expected[1])
    if (num_out, num_in) != expected:
        fact = f"got an update of {num_out} x {num_in} (out x in), expected {expected[0]} x {expected[1]}"
        fact += f" as {printable(view.tensor.name)} of the base"
        raise ShapeMismatch(fact, remedy=OTHER_BASE_REMEDY, file=adapter.path, tensor=down.name)
    magnitude = module.roles.get("magnitude")
    if adapter.config is not None and adapter.config.use_dora != (magnitude is not None):
        fact = "got a DoRA magnitude" if magnitude is not None else "got no DoRA magnitude"
        fact += f", expected {'none' if magnitude is not None else 'one'} as use_dora in the config says"
        raise MalformedInput(fact, remedy=_RESTORE_REMEDY, file=adapter.path, tensor=down.name)
    if magnitude is not None and (swapped or math.prod(magnitude.shape) != num_out):
        raise _mismatch(magnitude, f"{num_out} magnitudes, one per output")
    replaced = module.roles.get("replaced")
    return LoraUpdate(
        view=view,
        down=down,
        up=up,
        scaling=scaling,
        swapped=swapped,
        enabled=enabled,
        magnitude=magnitude,
        replaced=None if replaced is None else replace(view, tensor=replaced),
    )


def _scaling(rank: int, down: StoredTensor, adapter: AdapterSource, strength: Strength | None) -> float:
    if strength is not None:
        check_rank(rank, strength.rank, down)
        return strength.scaling
    if adapter.format == "diffusers":
        # LoRALinearLayer multiplies by network_alpha / rank only where a network_alpha was given; its old
        # files hold none.
        return 1.0
    if adapter.lora_alpha is None:
        raise UsageError("got no alpha, expected one", remedy="give lora_alpha", file=adapter.path)
    return adapter.lora_alpha / rank
