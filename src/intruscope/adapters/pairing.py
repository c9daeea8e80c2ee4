"""An adapter on its base: which matrices it changes, and a ledger line for every tensor of both."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.adapters.experts import (
    ExpertUpdate,
    FusedParameter,
    expert_updates,
    fused_parameters,
    name_parameters,
    without_layers,
)
from intruscope.adapters.fitting import fit_updates
from intruscope.adapters.heads import shared_matrix, sharing_findings, unsaved_finding
from intruscope.adapters.keys import sort_keys
from intruscope.adapters.kind import OTHER_BASE_REMEDY
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.errors import MalformedInput, UnsupportedFormat, printable
from intruscope.weights.heads import Body, SharedWords, head_findings
from intruscope.weights.layout import WEIGHT_NORM, MatrixListing, base_matrices, block_index
from intruscope.weights.matrices import (
    CoverageEntry,
    Finding,
    MatrixPair,
    Pairing,
    StoredUpdate,
)
from intruscope.weights.names import last_part
from intruscope.weights.orientation import UNKNOWN, orientation_findings
from intruscope.weights.pairing import check_one_place, prefix_findings
from intruscope.weights.prefixes import NameMatch, match_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from intruscope.adapters.config import ModuleScale
    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.kind import AdaptedModule
    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

_UNTARGETED = "no adapter weight targets it"
_FLOAT32_BYTES = 4


def pair_adapter(base: ModelSource, adapter: AdapterSource) -> Pairing:
    """Plan the scan of a base with an adapter on it, from headers; factors are read to see if all are zero.

    Args:
        base: The model that the adapter was trained on.
        adapter: From ``open_adapter``.

    Returns:
        The plan. ``complete`` is False when the adapter trained a matrix that the base does not store and
        that is no head which its config explains, or when the base holds weights that cannot be decoded.

    Raises:
        MalformedInput: no key matches the base, keys fit more than one part of it, a factor is missing, or
            ranks contradict the config.
        ShapeMismatch: factors do not fit their base matrix.
        UnsupportedFormat: a spelling that is not read.
    """
    modules, skipped = sort_keys(adapter)
    listing = adapted_matrices(base, adapter)
    unknown = [entry.tensor for entry in listing.skipped if entry.reason == UNKNOWN]
    match = ModuleMatch(modules, listing.matrices, base, adapter, unknown=unknown)
    scales = match.scales(modules, adapter)
    plan = _Plan()
    for name, parameter in match.parameters.items():
        plan.add(modules[name], expert_updates(modules[name], parameter, scales[name]), "")
    for name, stored in match.stored.items():
        fitted = fit_updates(modules[name], listing.matrices[stored], adapter, scales)
        if not fitted.matrices:
            plan.skip(modules[name], fitted.note, is_head=True)
            plan.notes[stored] = fitted.note
            continue
        if fitted.note:
            message = f"{printable(name)}: {fitted.note}"
            plan.findings.append(Finding(code="resized", severity="info", message=message))
        plan.notes[stored] = fitted.note or listing.notes.get(stored, "")
        plan.add(modules[name], fitted.matrices, fitted.note)
    for name, view in match.tied.items():
        fitted = fit_updates(modules[name], (view,), adapter, scales)
        source = printable(view.tensor.name.removesuffix(".weight"))
        plan.add(modules[name], fitted.matrices, f"the base computes it with {source}, which it shares")
        plan.notes.setdefault(view.tensor.name, f"also compared as {printable(name)}, which shares it")
    for name, module in modules.items():
        if name not in match.stored and name not in match.parameters and name not in match.tied:
            why = match.why_new(module, adapter)
            missing = f"the base is {base.unreadable}" if base.unreadable is not None else _NOT_STORED
            missing = UNKNOWN if match.is_unknown(module) else missing
            plan.skip(module, why or missing, is_head=why is not None)
            if why is not None and module.has_factors:
                plan.findings.append(unsaved_finding(name))
    for stored, views in listing.matrices.items():
        tied = tuple(view for view in match.tied.values() if view.tensor.name == stored)
        plan.add_base(stored, (*views, *tied))
    plan.coverage.extend(listing.skipped)
    for key, reason in skipped.items():
        plan.coverage.append(CoverageEntry(tensor=key, origin="adapter", status="skipped", reason=reason))
    # No adapter changes a weight-normalised convolution; one that tried to would be a gap of its own.
    untouched = sum(entry.reason == WEIGHT_NORM for entry in listing.skipped)
    num_gaps = len(listing.gaps) - untouched + plan.num_gaps
    findings = (
        *base.findings,
        *adapter.findings,
        *_base_name_findings(base, adapter),
        *match.findings,
        *plan.findings,
        *head_findings(plan.coverage, base.tensors, adapter.tensors),
        *orientation_findings(plan.coverage),
        *match.sharing_findings(modules, listing),
        *_content_findings(modules, skipped, num_gaps),
    )
    return Pairing(
        base=base.full_name,
        tuned=adapter.full_name,
        pairs=tuple(plan.pairs),
        coverage=tuple(plan.coverage),
        findings=findings,
        inputs=(*base.inputs, *adapter.inputs),
        complete=num_gaps == 0,
        in_memory=base.path is None or adapter.path is None,
    )


_NOT_STORED = "the base stores no matrix of this name"


def adapted_matrices(base: ModelSource, adapter: AdapterSource) -> MatrixListing:
    """The matrices of a base, read with what its adapter's config says about their orientation.

    PEFT sets ``fan_in_fan_out`` to suit each module that it adapts, and stores what it set for the last one.
    So the flag decides only for adapters whose modules all have one name.

    Args:
        base: The model.
        adapter: An adapter for it.
    """
    listing = base_matrices(base)
    stated = adapter.config.fan_in_fan_out if adapter.config is not None else None
    if stated is None or all(entry.reason != UNKNOWN for entry in listing.skipped):
        return listing
    modules, _ = sort_keys(adapter)
    leaves = {name.rpartition(".")[2] for name, module in modules.items() if "down" in module.roles}
    return base_matrices(base, fan_in_fan_out=stated) if len(leaves) == 1 else listing


class _Plan:
    """The pairs and ledger lines found so far; pairs come out in the order of the base."""

    def __init__(self) -> None:
        self.pairs: list[MatrixPair] = []
        self.coverage: list[CoverageEntry] = []
        self.findings: list[Finding] = []
        self.notes: dict[str, str] = {}
        self.num_gaps = 0
        self._pair_of: dict[str, MatrixPair] = {}
        self._compared: dict[str, int] = {}

    def add(
        self, module: AdaptedModule, matrices: tuple[tuple[TensorView, StoredUpdate], ...], note: str
    ) -> None:
        tensors = tuple(module.roles.values())
        for view, update in matrices:
            self._pair_of[view.name] = _pair(view, update, tensors)
        names = tuple(view.name for view, _ in matrices)
        for tensor in tensors:
            shared = self._compared.get(tensor.name)  # by other modules: one line for all of them
            if shared is not None:
                entry = self.coverage[shared]
                self.coverage[shared] = replace(entry, matrices=(*entry.matrices, *names))
                continue
            self._compared[tensor.name] = len(self.coverage)
            self.coverage.append(
                CoverageEntry(
                    tensor=tensor.name, origin="adapter", status="compared", reason=note, matrices=names
                )
            )

    def skip(self, module: AdaptedModule, reason: str, *, is_head: bool) -> None:
        """A gap, unless it is a head that the base does not have, or has in another size."""
        self.num_gaps += not is_head
        self.coverage.extend(
            CoverageEntry(
                tensor=t.name,
                origin="adapter",
                status="skipped",
                reason=reason,
                gap=not is_head,
                head="new" if is_head else None,
            )
            for t in module.roles.values()
        )

    def add_base(self, stored: str, views: tuple[TensorView, ...]) -> None:
        pairs = [self._pair_of[view.name] for view in views if view.name in self._pair_of]
        self.pairs.extend(pairs)
        note = self.notes.get(stored)
        self.coverage.append(
            CoverageEntry(
                tensor=stored,
                origin="base",
                status="compared" if pairs else "unchanged" if note is None else "skipped",
                reason=note or ("" if pairs else _UNTARGETED),
                matrices=tuple(pair.name for pair in pairs),
            )
        )


class ModuleMatch:
    """Which base tensor, or which fused parameter, each module of an adapter is for.

    Names agree up to one prefix that a whole side carries.

    Args:
        modules: Of the adapter.
        matrices: Of the base.
        base: Named in errors.
        adapter: Named in errors, with its config.
        unknown: Tensors of the base whose orientation is not known.

    Attributes:
        stored: Module to stored base tensor.
        parameters: Module to the fused experts that it wraps.
        tied: A head or embedding of words that the base does not store, with the matrix that it shares.
        key_of: Module to the name by which PEFT looks its rank and alpha up.
        prefixes: What was taken off the names of each side.
        findings: What had to be assumed.
    """

    def __init__(
        self,
        modules: dict[str, AdaptedModule],
        matrices: dict[str, tuple[TensorView, ...]],
        base: ModelSource,
        adapter: AdapterSource,
        *,
        unknown: Collection[str] = (),
    ) -> None:
        targets = adapter.config.target_parameters if adapter.config is not None else ()
        fused = fused_parameters(matrices) if targets else {}
        stored_of = {name.removesuffix(".weight"): name for name in matrices}
        # The head that a task adds never matches; it must not decide on the prefix.
        trained = [name for name, module in modules.items() if "saved" not in module.roles] or list(modules)

        def fits(name: str, module: str) -> bool:
            return name not in stored_of or _fits(matrices[stored_of[name]][0], modules[module])

        wrapped = dict.fromkeys(name.rpartition(".")[0] for name in fused)
        unread = [name.removesuffix(".weight") for name in unknown]
        found = match_names([*stored_of, *wrapped, *unread], trained, fits=fits)
        check_one_place(found, tuned="adapter", file=adapter.path)
        base_prefix, adapter_prefix = found.base, found.tuned
        bare = {name: name.removeprefix(adapter_prefix) for name in modules}
        places = {name: name.removeprefix(base_prefix) for name in [*stored_of, *wrapped, *unread]}
        second, moved = _second_tower(places, {name: bare[name] for name in trained}, fits)
        bare |= moved
        self._bare = bare
        self._body = Body.of(name.removeprefix(base_prefix) for name in stored_of)
        fused = {name.removeprefix(base_prefix): parameter for name, parameter in fused.items()}
        named = name_parameters({bare[name]: m for name, m in modules.items()}, fused, targets, adapter)
        self.parameters: dict[str, FusedParameter] = {
            name: fused[named[bare[name]]] for name in modules if bare[name] in named
        }
        # PEFT looks the rank of a wrapped parameter up by the parameter's own name.
        self.key_of: dict[str, str] = {
            name: f"{without_layers(name)}.{named[bare[name]].rpartition('.')[2]}"
            if bare[name] in named
            else name
            for name in modules
        }
        by_name = {name.removeprefix(base_prefix): stored for name, stored in stored_of.items()}
        self.stored: dict[str, str] = {}
        for name in modules:
            if name not in self.parameters and bare[name] in by_name:
                self.stored[name] = by_name.pop(bare[name])
        self._shared = SharedWords(base.config, matrices, needs_head=False)
        self.tied = {
            name: view
            for name, module in modules.items()
            if name not in self.stored and name not in self.parameters
            for view in [shared_matrix(bare[name], module, self._shared)]
            if view is not None
        }
        self._unknown = frozenset(name.removeprefix(base_prefix) for name in unread)
        known = self.stored.keys() | self.parameters.keys() | self.tied.keys()
        if not any(name in known or bare[name] in self._unknown for name in trained):
            raise _no_match(trained, list(stored_of), base, adapter)
        self.prefixes = found
        self.findings = [*prefix_findings(found, tuned="adapter"), *prefix_findings(second, tuned="adapter")]

    def is_unknown(self, module: AdaptedModule) -> bool:
        """Whether the base stores the module, but its orientation is not known."""
        return self._bare[module.name] in self._unknown

    def sharing_findings(self, modules: dict[str, AdaptedModule], listing: MatrixListing) -> list[Finding]:
        """Where a merge does not compute what PEFT runs, because modules share one matrix of words."""
        places = {name: listing.matrices[stored][0] for name, stored in self.stored.items()} | self.tied
        return sharing_findings(modules, places, self._shared, self._bare)

    def why_new(self, module: AdaptedModule, adapter: AdapterSource) -> str | None:
        """Why a module that the base does not store is a new head; None where nothing says so."""
        if adapter.config is None or self._body.holds(self._bare[module.name]):
            return None
        return adapter.config.why_new(module.name, saved=module.roles.keys() == {"saved"})

    def scales(self, modules: dict[str, AdaptedModule], adapter: AdapterSource) -> dict[str, ModuleScale]:
        """Rank and scaling of the modules with factors; none without a config."""
        if adapter.config is None:
            return {}
        keys = {name: self.key_of[name] for name, module in modules.items() if module.has_factors}
        found = adapter.config.scales_of(list(dict.fromkeys(keys.values())))
        return {name: found[key] for name, key in keys.items()}


def _second_tower(
    places: Mapping[str, str], bare: Mapping[str, str], fits: Callable[[str, str], bool]
) -> tuple[NameMatch, dict[str, str]]:
    """Match the blocks of a second tower, whose names begin otherwise than those of the first.

    transformers calls the towers of many models otherwise in memory than in files: ``model.visual`` is
    ``visual``, and ``model.language_model.layers`` is ``model.layers``.

    Args:
        places: The base's names, and what is left of them without the first tower's prefix.
        bare: Likewise of the adapter.
        fits: Whether a base name and a module can belong together, by their shapes.

    Returns:
        How the names agree, and the base's bare name for each module. Nothing where the modules that are left
        do not all have exactly one place.
    """
    known, used = set(places.values()), set(bare.values())
    modules = [n for n, rest in bare.items() if without_layers(rest) not in known and _is_in_block(n)]
    # Further blocks of a tower that was matched are missing in the base, and are not another tower's.
    if not {_stack(name) for name in modules}.isdisjoint(_stack(name) for name in bare.keys() - set(modules)):
        return NameMatch(), {}
    free = [name for name, rest in places.items() if rest not in used and _is_in_block(name)]
    found = match_names(free, modules, fits=fits)
    ends = {name.removeprefix(found.base): places[name] for name in free}
    moved = {name: ends.get(name.removeprefix(found.tuned)) for name in modules}
    matched = {name: rest for name, rest in moved.items() if rest is not None}
    if found.rivals or len(matched) < len(modules):
        return NameMatch(), {}
    return found, matched


def _is_in_block(name: str) -> bool:
    return block_index(name)[0] is not None


def _stack(name: str) -> str:
    """The words before a block's number."""
    return re.split(r"\.\d+(\.|$)", name, maxsplit=1)[0]


def _fits(view: TensorView, module: AdaptedModule) -> bool:
    """Whether the tensors of a module can be of a base matrix, by their sizes; resized vocabularies fit."""
    roles = module.roles
    if view.kind in ("embedding", "head") or view.expert is not None:
        return True
    if "down" in roles and "up" in roles and len(roles["up"].shape) > 1 and len(roles["down"].shape) > 1:
        sizes = (roles["up"].shape[0], math.prod(roles["down"].shape[1:]))
        return sizes[1] in view.whole_shape and (sizes[0] in view.whole_shape or view.rows is not None)
    whole = roles.get("saved") or roles.get("replaced")
    return whole is None or whole.shape == view.tensor.shape


def _no_match(
    trained: list[str], stored: list[str], base: ModelSource, adapter: AdapterSource
) -> MalformedInput:
    if base.unreadable is not None:
        return UnsupportedFormat(
            f"the base is {base.unreadable}, so no matrix that the adapter changes can be read",
            remedy="give the unquantised model that this base was made from",
            file=base.path,
        )
    shown = [
        ", ".join(
            f"{printable(prefix)} ({count})"
            for prefix, count in Counter(".".join(n.split(".")[:3]) for n in names).most_common(3)
        )
        or "none"
        for names in (trained, stored)
    ]
    asked = f" and its config asks for the base {printable(adapter.base_name)}" if adapter.base_name else ""
    return MalformedInput(
        f"no adapter key matches the base: the adapter has {shown[0]}{asked}; the base has {shown[1]}",
        remedy=f"{OTHER_BASE_REMEDY}; `intruscope layers {printable(base.name)}` lists its matrices",
        file=adapter.path,
    )


def _pair(view: TensorView, update: StoredUpdate, tensors: tuple[StoredTensor, ...]) -> MatrixPair:
    if isinstance(update, ExpertUpdate):
        factors = update.estimated_bytes
    else:
        low_rank = isinstance(update, LoraUpdate) and update.is_low_rank
        dense = 0 if low_rank else math.prod(view.shape) * _FLOAT32_BYTES * 2
        factors = dense + 2 * sum(t.num_bytes for t in tensors)
    return MatrixPair(
        name=view.name,
        kind=view.kind,
        layer=view.layer,
        scope=view.scope,
        base=view,
        update=update,
        estimated_bytes=view.estimated_bytes + factors,
    )


def _base_name_findings(base: ModelSource, adapter: AdapterSource) -> list[Finding]:
    stated = adapter.base_name
    if stated is None or base.path is None:
        return []
    if last_part(stated) in (last_part(base.name), last_part(str(base.path))):
        return []
    message = (
        f"the adapter was trained on '{printable(stated)}', but the base here is '{printable(base.name)}'"
    )
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
        message = f"{biased} low-rank layers also have a bias (lora_bias), which changes no matrix"
        findings.append(Finding(code="lora-bias", severity="info", message=message))
    plain = [module.roles for module in modules.values() if module.roles.keys() == {"down", "up"}]
    # B begins at zero, except where A does (MiCA).
    for role, factor in (("up", "B"), ("down", "A")):
        if plain and len(plain) == len(modules) and all(_is_zero(roles[role]) for roles in plain):
            message = f"this adapter changes nothing: every {factor} is zero, so it was never trained"
            findings.append(Finding(code="zero-adapter", severity="warning", message=message))
            break
    return findings


def _is_zero(tensor: StoredTensor) -> bool:
    return all(piece.count(0) == len(piece) for piece in tensor.raw())
