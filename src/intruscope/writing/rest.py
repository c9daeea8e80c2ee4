"""What the fine-tune changed and that gets no factors: norms, biases, new heads, unselected matrices.

PEFT can store a module whole (``modules_to_save``) if it is a module by itself, and the bias of a module with
factors (``bias``). Anything else is named as lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.adapters.keys import PEFT_PREFIX, sort_keys
from intruscope.adapters.updates import SavedUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.source import ModelSource
from intruscope.writing.changed import tensor_twins

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.matrices import Pairing
    from intruscope.weights.stored import StoredTensor
    from intruscope.writing.modules import TargetModule
    from intruscope.writing.naming import AdapterNames

RestStatus = Literal["left out", "saved", "lost"]
_ORIGINAL = ".original_module."
"""PEFT keeps the base's module beside one that is saved whole, and stores its bias with ``bias: all``."""
_OF_A_MODULE = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Something that the fine-tune changed and that gets no factors.

    Attributes:
        name: Name in the base's files, or in the tuned model's if the base has none.
        change_norm: ‖tuned − base‖_F; None if the base does not have it.
        status: ``saved`` whole with the adapter, ``left out``, or ``lost``: PEFT cannot store it.
        reason: One clause.
    """

    name: str
    change_norm: float | None
    status: RestStatus
    reason: str


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What goes into the adapter unchanged.

    Attributes:
        modules: Entries of ``modules_to_save``.
        biases: Whether biases are among the tensors.
        tensors: Key to the stored tensor.
    """

    modules: tuple[str, ...]
    biases: bool
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class _Change:
    """One tensor: its name in the model, what a reader calls it, and its size."""

    tensor: str
    name: str
    norm: float | None
    reason: str
    why_not: str = ""


def find_rest(
    base: ModelSource,
    tuned: ModelSource | AdapterSource,
    pairing: Pairing,
    *,
    modules: Sequence[TargetModule],
    adapted: Collection[str],
    norms: Mapping[str, float],
    names: AdapterNames,
    save: bool,
) -> tuple[tuple[Rest, ...], Saved]:
    """Find everything that changed outside of the modules with factors.

    Args:
        base: The opened base.
        tuned: The opened tuned model.
        pairing: Their paired matrices.
        modules: Modules without factors that have matrices on both sides.
        adapted: Names (in the adapter) of the modules with factors.
        norms: ‖ΔW‖_F by module name in the base.
        names: How the model names its modules.
        save: Whether to save what changed.

    Raises:
        MalformedInput: a file changed since planning.
    """
    state = _state(tuned, names)
    changes = [*_matrices(modules, adapted, norms, state), *_others(base, tuned, pairing, names)]
    rest: list[Rest] = []
    whole: dict[str, None] = {}
    tensors: dict[str, StoredTensor] = {}
    known = names.modules or (
        {module.module for module in modules} | {tensor.rpartition(".")[0] for tensor in state}
    )
    for change in changes:
        why_not = change.why_not
        places = [] if why_not else [change.tensor, *names.aliases.get(change.tensor, ())]
        for place in dict.fromkeys(places):
            # A parameter that several modules share is saved with each: PEFT gives each a copy of its own.
            owner, _, leaf = place.rpartition(".")
            refused = _why_not(owner, leaf, adapted=adapted, state=state, known=known)
            why_not = refused if place == change.tensor else "" if not refused else why_not
            if save and not refused and owner in adapted:
                tensors[f"{PEFT_PREFIX}{owner}.base_layer.bias"] = state[place]
            elif save and not refused and leaf == "bias" and f"{owner}.weight" not in state:
                tensors[f"{PEFT_PREFIX}{place}"] = state[place]  # of an adapter that trained biases alone
            elif save and not refused:
                whole[owner] = None
        status: RestStatus = "left out" if not save else "lost" if why_not else "saved"
        reason = why_not if status == "lost" else change.reason
        rest.append(Rest(name=change.name, change_norm=change.norm, status=status, reason=reason))
    biases = bool(tensors)
    for name, tensor in state.items():
        if name.rpartition(".")[0] in whole:
            tensors[f"{PEFT_PREFIX}{name}"] = tensor
    return tuple(rest), Saved(modules=tuple(whole), biases=biases, tensors=tensors)


def _state(tuned: ModelSource | AdapterSource, names: AdapterNames) -> dict[str, StoredTensor]:
    """What the tuned side stores whole, by all of its names in the model."""
    if isinstance(tuned, ModelSource):
        state = {}
        for stored, tensor in tuned.tensors.items():
            for name in names.aliases.get(names.of(stored), (names.of(stored),)):
                state[name] = tensor
        return state
    modules, skipped = sort_keys(tuned)
    state = {f"{n}.weight": m.roles["saved"] for n, m in modules.items() if "saved" in m.roles}
    for key in skipped:
        name = key.removeprefix(PEFT_PREFIX)
        for wrapper in (".modules_to_save.default.", ".modules_to_save.", ".base_layer."):
            name = name.replace(wrapper, ".")
        if ".lora_" not in name and _ORIGINAL not in name:
            state[name] = tuned.tensors[key]
    return state


def _matrices(
    modules: Sequence[TargetModule],
    adapted: Collection[str],
    norms: Mapping[str, float],
    state: Mapping[str, StoredTensor],
) -> list[_Change]:
    found = []
    for module in modules:
        norm = norms.get(module.name, 0.0)
        if module.module in adapted or norm == 0.0:
            continue
        why_not = ""
        if not module.can_be_whole:
            why_not = module.reason
        elif f"{module.module}.weight" not in state:
            why_not = "stored as factors or single words, not whole"
        reason = module.reason or "a matrix that was not chosen"
        found.append(
            _Change(
                tensor=f"{module.module}.weight",
                name=module.name,
                norm=norm,
                reason=reason,
                why_not=why_not,
            )
        )
    return found


def _others(
    base: ModelSource, tuned: ModelSource | AdapterSource, pairing: Pairing, names: AdapterNames
) -> list[_Change]:
    """Vectors that differ, and whatever the base does not have."""
    found = []
    if not isinstance(tuned, ModelSource):
        compared = {entry.tensor for entry in pairing.coverage if entry.status == "compared"}
        for vector in trained_vectors(tuned, base):
            if _ORIGINAL in vector.tensor.name or vector.tensor.name in compared:
                continue
            target = vector.target
            name = target or vector.tensor.name.removeprefix(PEFT_PREFIX)
            before = None if target is None else base.tensors[target]
            norm = None if before is None else _difference(before, vector.tensor)
            why_not = "" if vector.module is None else "a bias that goes with its factors (lora_bias)"
            if norm != 0.0:
                found.append(
                    _Change(tensor=name, name=name, norm=norm, reason=_reason(norm), why_not=why_not)
                )
        modules, _ = sort_keys(tuned)
        paired = {p.update.tuned.tensor.name for p in pairing.pairs if isinstance(p.update, SavedUpdate)}
        for name, module in modules.items():
            saved = module.roles.get("saved")
            if saved is not None and saved.name not in paired:
                tensor = f"{name}.weight"
                found.append(_Change(tensor=tensor, name=tensor, norm=None, reason=_reason(None)))
        return found
    twins = tensor_twins(base, tuned, pairing)
    known = {twin.name for twin in twins.values()}
    known |= {p.update.tuned.tensor.name for p in pairing.pairs if isinstance(p.update, CheckpointUpdate)}
    for name, twin in twins.items():
        norm = _difference(base.tensors[name], twin)
        if norm:
            found.append(_Change(tensor=names.of(twin.name), name=name, norm=norm, reason=_reason(norm)))
    for name, stored in tuned.tensors.items():
        if name not in known and stored.decodable:
            found.append(_Change(tensor=names.of(name), name=name, norm=None, reason=_reason(None)))
    return found


def _reason(norm: float | None) -> str:
    return "new: the base has none of this name and size" if norm is None else "a vector, not a matrix"


def _difference(before: StoredTensor, after: StoredTensor) -> float:
    return math.sqrt(float((after.read().double() - before.read().double()).square().sum()))


def _why_not(
    owner: str,
    leaf: str,
    *,
    adapted: Collection[str],
    state: Mapping[str, StoredTensor],
    known: Collection[str],
) -> str:
    """Why PEFT cannot store it; empty where it can."""
    if owner in adapted:
        return "" if leaf == "bias" else "part of a module with factors, of which PEFT stores the bias alone"
    if leaf not in _OF_A_MODULE:
        return "a bare parameter: PEFT stores whole modules"
    if any(name.startswith(f"{owner}.") and name.rpartition(".")[0] != owner for name in state):
        return "part of a module with others in it: PEFT stores whole modules"
    # PEFT takes every module whose name ends in an entry, wherever the end begins (utils/other.py).
    if any(name != owner and name.endswith(owner) for name in known):
        return "a name that other modules end in: PEFT would store these too"
    return ""
