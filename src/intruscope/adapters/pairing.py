"""An adapter on its base: which matrices it changes, and a ledger line for every tensor of both."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.adapters.keys import AdaptedModule, sort_keys
from intruscope.adapters.updates import LoraUpdate, SavedUpdate, TokensUpdate
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, UsageError, printable
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import CoverageEntry, Finding, MatrixPair, Pairing, StoredUpdate
from intruscope.weights.pairing import _find_prefixes
from intruscope.weights.stored import open_regular, read_exactly

if TYPE_CHECKING:
    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

_REMEDY = "check that this adapter is for this base"
_UNTARGETED = "no adapter weight targets it"
_FLOAT32_BYTES = 4


def pair_adapter(base: ModelSource, adapter: AdapterSource) -> Pairing:
    """Plan the scan of a base with an adapter on it, from headers (and B's bytes: are all 0?).

    Args:
        base: The model that the adapter was trained on.
        adapter: From ``open_adapter``.

    Returns:
        The plan. ``complete`` is False when the adapter trained a matrix that the base does not store, or the
        base holds weights that cannot be decoded.

    Raises:
        MalformedInput: no key matches the base, a factor is missing, or ranks contradict the config.
        ShapeMismatch: factors do not fit their base matrix.
        UnsupportedFormat: a spelling that is not read.
    """
    modules, skipped = sort_keys(adapter)
    listing = base_matrices(base)
    findings = [*base.findings, *_base_name_findings(base, adapter)]
    matched = _match(modules, listing.matrices, base, adapter, findings)
    pairs: list[MatrixPair] = []
    coverage = list(listing.skipped)
    num_gaps = len(listing.gaps)
    origin_of = {stored: name for name, stored in matched.items()}
    for stored, views in listing.matrices.items():
        if stored not in origin_of:
            coverage.append(
                CoverageEntry(tensor=stored, origin="base", status="unchanged", reason=_UNTARGETED)
            )
            continue
        module = modules[origin_of[stored]]
        updates = _updates(module, views, adapter)
        tensors = tuple(module.roles.values())
        if updates is None:
            reason = f"a {views[0].kind} of another size than the base's"
            coverage.append(CoverageEntry(tensor=stored, origin="base", status="skipped", reason=reason))
            coverage.extend(_lines(tensors, "skipped", reason))
            continue
        names = tuple(view.name for view in views)
        for view, update in zip(views, updates, strict=True):
            pairs.append(_pair(view, update, tensors))
        note = listing.notes.get(stored, "")
        coverage.append(
            CoverageEntry(tensor=stored, origin="base", status="compared", reason=note, matrices=names)
        )
        coverage.extend(_lines(tensors, "compared", "", names))
    for name, module in modules.items():
        if name in matched:
            continue
        is_new = module.roles.keys() == {"saved"}
        reason = (
            "a module saved whole that the base does not store (a new head)"
            if is_new
            else "the base stores no matrix of this name (a tied head is stored as the embedding)"
        )
        num_gaps += not is_new
        coverage.extend(_lines(tuple(module.roles.values()), "skipped", reason))
    for key, reason in skipped.items():
        coverage.append(CoverageEntry(tensor=key, origin="adapter", status="skipped", reason=reason))
    findings.extend(_content_findings(modules, skipped, num_gaps))
    return Pairing(
        base=f"{base.name} ({base.revision})" if base.revision else base.name,
        tuned=f"{adapter.name} ({adapter.revision})" if adapter.revision else adapter.name,
        pairs=tuple(pairs),
        coverage=tuple(coverage),
        findings=tuple(findings),
        inputs=(*base.inputs, *adapter.inputs),
        complete=num_gaps == 0,
    )


def _lines(
    tensors: tuple[StoredTensor, ...], status: str, reason: str, names: tuple[str, ...] = ()
) -> list[CoverageEntry]:
    done = status == "compared"
    return [
        CoverageEntry(
            tensor=tensor.name,
            origin="adapter",
            status="compared" if done else "skipped",
            reason=reason,
            matrices=names,
        )
        for tensor in tensors
    ]


def _match(
    modules: dict[str, AdaptedModule],
    matrices: dict[str, tuple[TensorView, ...]],
    base: ModelSource,
    adapter: AdapterSource,
    findings: list[Finding],
) -> dict[str, str]:
    """Adapter module to stored base tensor, up to one prefix that a whole side carries."""
    stored_of = {name.removesuffix(".weight"): name for name in matrices}
    # The head that a task adds never matches; it must not decide on the prefix.
    trained = [name for name, module in modules.items() if "saved" not in module.roles] or list(modules)
    base_prefix, adapter_prefix = _find_prefixes(stored_of, trained)
    by_name = {name.removeprefix(base_prefix): stored for name, stored in stored_of.items()}
    matched: dict[str, str] = {}
    for name in modules:
        stored = by_name.get(name.removeprefix(adapter_prefix))
        if stored is not None and stored not in matched.values():
            matched[name] = stored
    if not any(name in matched for name in trained):
        shown = [
            ", ".join(
                f"{printable(prefix)} ({count})"
                for prefix, count in Counter(".".join(n.split(".")[:3]) for n in names).most_common(3)
            )
            or "none"
            for names in (trained, stored_of)
        ]
        raise MalformedInput(
            f"got no adapter key that matches the base: it has {shown[0]}, expected the base's {shown[1]}",
            remedy=f"{_REMEDY}; `intruscope layers {printable(base.name)}` lists its matrices",
            file=adapter.path,
        )
    for side, prefix in (("base", base_prefix), ("adapter", adapter_prefix)):
        if prefix:
            message = (
                f"the {side}'s names begin with '{printable(prefix)}', which was taken off to match them"
            )
            findings.append(Finding(code="prefix", severity="info", message=message))
    return matched


def _pair(view: TensorView, update: StoredUpdate, tensors: tuple[StoredTensor, ...]) -> MatrixPair:
    dense = not isinstance(update, LoraUpdate) or update.magnitude is not None or update.replaced is not None
    extra = math.prod(view.shape) * _FLOAT32_BYTES * 2 if dense else 0
    return MatrixPair(
        name=view.name,
        kind=view.kind,
        layer=view.layer,
        scope=view.scope,
        base=view,
        update=update,
        estimated_bytes=view.estimated_bytes + extra + 2 * sum(t.num_bytes for t in tensors),
    )


def _updates(
    module: AdaptedModule, views: tuple[TensorView, ...], adapter: AdapterSource
) -> list[StoredUpdate] | None:
    """One update per view; None for a head or embedding that was saved in another size."""
    for tensor in module.roles.values():
        if not tensor.decodable:
            fact = f"got the dtype {tensor.dtype}, expected F64, F32, F16 or BF16"
            raise UnsupportedFormat(
                fact, remedy="save the adapter in float32", file=tensor.path, tensor=tensor.name
            )
    whole = views[0].tensor.shape
    dense = module.roles.get("saved") or module.roles.get("replaced")
    if dense is not None and dense.shape != whole:
        if views[0].kind in ("embedding", "head"):
            return None
        raise _mismatch(dense, f"the shape {list(whole)} of the base's {printable(views[0].tensor.name)}")
    if "saved" in module.roles:
        return [SavedUpdate(tuned=replace(view, tensor=module.roles["saved"])) for view in views]
    if "tokens" in module.roles:
        return [_tokens_update(module, view, adapter) for view in views]
    if "down" not in module.roles:
        return [SavedUpdate(tuned=replace(view, tensor=module.roles["replaced"])) for view in views]
    return [_lora_update(module, view, adapter) for view in views]


def _mismatch(tensor: StoredTensor, expected: str) -> ShapeMismatch:
    fact = f"got the shape {list(tensor.shape)}, expected {expected}"
    return ShapeMismatch(fact, remedy=_REMEDY, file=tensor.path, tensor=tensor.name)


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
    width, num_words = view.shape
    if (
        view.kind != "embedding"
        or rows.shape != (len(indices), width)
        or max(indices, default=0) >= num_words
    ):
        raise _mismatch(rows, f"[{len(indices)}, {width}] for words below {num_words} of an embedding")
    return TokensUpdate(rows=rows, indices=indices)


def _lora_update(module: AdaptedModule, view: TensorView, adapter: AdapterSource) -> LoraUpdate:
    down, up = module.roles["down"], module.roles["up"]
    enabled = adapter.config.enable_lora if adapter.config is not None else None
    num_groups = sum(enabled) if enabled is not None else 1
    if len(down.shape) < 2 or len(up.shape) < 2 or 0 in down.shape or 0 in up.shape:
        raise _mismatch(
            down if len(down.shape) < 2 or 0 in down.shape else up, "a factor with a rank of at least 1"
        )
    rank = up.shape[1]
    if down.shape[0] != rank * num_groups or math.prod(up.shape[2:]) != 1:
        raise _mismatch(up, f"[out, {down.shape[0] // num_groups}] to go with A of shape {list(down.shape)}")
    scaling = _scaling(module, rank, down, adapter)
    num_out, num_in = up.shape[0], math.prod(down.shape[1:])
    if enabled is not None:
        if num_out % num_groups:
            raise _mismatch(up, f"rows that {num_groups} enabled parts share equally")
        num_out = num_out // num_groups * len(enabled)
    # An embedding's factors are (width, vocabulary) as our views of embeddings are. A Linear that is stored
    # under an embedding's name, or an embedding under another, is the other way round.
    swapped = module.is_embedding != (view.kind == "embedding") and view.expert is None
    expected = view.whole_shape[::-1] if swapped else view.whole_shape
    if (num_out, num_in) != expected:
        fact = f"got an update of {num_out} x {num_in} (out x in), expected {expected[0]} x {expected[1]}"
        fact += f" as {printable(view.tensor.name)} of the base"
        raise ShapeMismatch(fact, remedy=_REMEDY, file=adapter.path, tensor=down.name)
    magnitude = module.roles.get("magnitude")
    if adapter.config is not None and adapter.config.use_dora != (magnitude is not None):
        fact = "got a DoRA magnitude" if magnitude is not None else "got no DoRA magnitude"
        fact += f", expected {'none' if magnitude is not None else 'one'} as use_dora in the config says"
        raise MalformedInput(
            fact, remedy="restore the adapter's own config", file=adapter.path, tensor=down.name
        )
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


def _scaling(module: AdaptedModule, rank: int, down: StoredTensor, adapter: AdapterSource) -> float:
    if adapter.config is not None:
        told = adapter.config.rank_of(module.name)
        if told != rank:
            fact = f"got factors of rank {rank}, expected {told} as the config says"
            remedy = "restore the adapter's own config"
            raise MalformedInput(fact, remedy=remedy, file=adapter.path, tensor=down.name)
        return adapter.config.scaling_of(module.name)
    if adapter.format == "diffusers":
        # LoRALinearLayer multiplies by network_alpha / rank only where a network_alpha was given; its old
        # files hold none.
        return 1.0
    if adapter.lora_alpha is None:
        raise UsageError("got no alpha, expected one", remedy="give lora_alpha", file=adapter.path)
    return adapter.lora_alpha / rank


def _base_name_findings(base: ModelSource, adapter: AdapterSource) -> list[Finding]:
    told = adapter.base_name
    if told is None:
        return []

    def last(name: str) -> str:
        return name.partition("@")[0].rstrip("/").rpartition("/")[2].lower()

    if last(told) in (last(base.name), base.path.name.lower()):
        return []
    message = f"the adapter names the base '{printable(told)}', and was put on '{printable(base.name)}'"
    return [Finding(code="other-base", severity="warning", message=message)]


def _content_findings(
    modules: dict[str, AdaptedModule], skipped: dict[str, str], num_gaps: int
) -> list[Finding]:
    findings = []
    if num_gaps:
        message = f"{num_gaps} tensors or modules with weights could not be compared; the ledger names them"
        findings.append(Finding(code="incomplete-coverage", severity="warning", message=message))
    biased = sum(key.endswith(".bias") and ".lora_" in key for key in skipped)
    if biased:
        message = f"{biased} low-rank layers also carry a bias (lora_bias); it changes no matrix"
        findings.append(Finding(code="lora-bias", severity="info", message=message))
    ups = [module.roles["up"] for module in modules.values() if module.roles.keys() == {"down", "up"}]
    if ups and len(ups) == len(modules) and all(_is_zero(up) for up in ups):
        message = "this adapter changes nothing: every B is zero, so it was never trained"
        findings.append(Finding(code="zero-adapter", severity="warning", message=message))
    return findings


def _is_zero(tensor: StoredTensor) -> bool:
    with open_regular(tensor.path) as (descriptor, _):
        data = read_exactly(descriptor, tensor.offset, tensor.num_bytes, path=tensor.path)
    return data.count(0) == len(data)
