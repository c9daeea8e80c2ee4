"""The one door: a base and what was trained from it, from files or from memory, opened and paired once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from intruscope.adapters.folder import AdapterSource, find_adapter, open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UsageError, printable
from intruscope.weights.memory import mapping_source
from intruscope.weights.names import ModelName, parse_name
from intruscope.weights.pairing import pair_checkpoints
from intruscope.weights.source import ModelSource, WeightSource, open_model

if TYPE_CHECKING:
    import numpy
    import torch
    from torch import nn

    from intruscope.weights.matrices import Pairing

    Tensors = Mapping[str, torch.Tensor | numpy.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedPair:
    """A base and what was trained from it, known from headers; no weight is read yet.

    Attributes:
        base: The model before.
        tuned: The model after, or the adapter.
        pairing: Which matrices are compared, and the ledger of everything else.
        base_module: The module that the base is, where it is one in memory.
        tuned_module: The same of the tuned side.
    """

    base: ModelSource
    tuned: ModelSource | AdapterSource
    pairing: Pairing
    base_module: nn.Module | None = None
    tuned_module: nn.Module | None = None

    @property
    def in_memory(self) -> bool:
        """Whether either side is held by this process: then nothing can be resumed, or sent to workers."""
        return self.pairing.in_memory


ModelLike: TypeAlias = "str | Path | nn.Module | Tensors | WeightSource | OpenedPair"
"""What a verb takes as a model: a name or path, a transformers model or PeftModel, a mapping of names to
tensors, an opened source, or (alone) a pair that is open already."""


def is_named(model: object) -> bool:
    """Whether a model is given by name or path."""
    return isinstance(model, (str, Path))


def open_pair(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
) -> OpenedPair:
    """Open a base and what was trained from it, and pair their matrices.

    Args:
        base: The model before: a path, ``org/name@revision``, ``base+adapter``, an adapter alone (which
            names its base), a transformers model in memory (also the one inside the PeftModel), a PeftModel
            alone, a mapping of names to tensors, an opened source, or a pair that is open already.
        tuned: The model after: a full checkpoint, an adapter, or any of these in memory.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: For adapters that do not store it.

    Returns:
        The pair. Nothing in memory is copied or changed, and no file is written.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    if isinstance(base, OpenedPair):
        return base
    options: dict[str, Any] = {"allow_pickle": allow_pickle, "lora_alpha": lora_alpha}
    if is_named(base) and (tuned is None or is_named(tuned)):
        before, after = _named(str(base), None if tuned is None else str(tuned), **options)
    else:
        before, after = _mixed(base, tuned, **options)
    pairing = (
        pair_checkpoints(before, after) if isinstance(after, ModelSource) else pair_adapter(before, after)
    )
    return OpenedPair(
        base=before,
        tuned=after,
        pairing=pairing,
        base_module=_module(base),
        tuned_module=_module(base if tuned is None else tuned),
    )


def _module(model: object) -> nn.Module | None:
    return model if hasattr(model, "named_parameters") else None  # type: ignore[return-value]


def _named(
    base: str, tuned: str | None, *, allow_pickle: bool, lora_alpha: float | None
) -> tuple[ModelSource, ModelSource | AdapterSource]:
    """Open what two names lead to."""
    before, after = _resolve(base, tuned)
    opened = _open_tuned(after, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    if before is None:
        if isinstance(opened, ModelSource):
            raise UsageError(
                f"{printable(base)} is a model, not an adapter: there is nothing to compare it with",
                remedy="name two models: intruscope scan BASE TUNED",
            )
        before = _base_of(opened)
    return open_model(before, allow_pickle=allow_pickle), opened


def _resolve(base: str, tuned: str | None) -> tuple[ModelName | None, ModelName]:
    """Which model comes before (None: the adapter knows) and which after."""
    first = parse_name(base)
    if tuned is None:
        if first.adapter is not None:
            return replace(first, adapter=None), first.adapter
        return None, first
    second = parse_name(tuned)
    if first.adapter is not None:
        raise UsageError(
            f"the base {printable(base)} carries an adapter; the base must be a model alone",
            remedy="give BASE and ADAPTER as two names; if the second model should be BASE with ADAPTER "
            "merged, run intruscope verify BASE ADAPTER MERGED",
        )
    if second.adapter is not None:
        if (second.path, second.hub_id, second.revision) != (first.path, first.hub_id, first.revision):
            raise UsageError(
                f"{printable(tuned)} is an adapter on another base than {printable(base)}",
                remedy="merge the adapter first, or give the same base on both sides",
            )
        return first, second.adapter
    return first, second


def _open_tuned(
    name: ModelName, *, allow_pickle: bool, lora_alpha: float | None
) -> ModelSource | AdapterSource:
    folder = find_adapter(name, allow_pickle=allow_pickle)
    if folder is None:
        if lora_alpha is not None:
            raise UsageError(
                "lora_alpha is for LoRA adapters, and this is a full checkpoint",
                remedy="leave --lora-alpha out",
                file=name.given,
            )
        return open_model(name, allow_pickle=allow_pickle)
    return open_adapter(folder, name=name.given, allow_pickle=allow_pickle, lora_alpha=lora_alpha)


def _base_of(adapter: AdapterSource) -> ModelName:
    if adapter.base_name is None:
        raise UsageError(
            "the adapter does not say which base it was trained on",
            remedy="name the base: intruscope scan BASE ADAPTER",
            file=adapter.path,
        )
    return parse_name(adapter.base_name)


def _mixed(
    base: ModelLike, tuned: ModelLike | None, *, allow_pickle: bool, lora_alpha: float | None
) -> tuple[ModelSource, ModelSource | AdapterSource]:
    """Open two sides of which one at least is no name."""
    from intruscope.adapters.in_memory import adapter_source, base_source, has_adapter

    if tuned is None:
        if not has_adapter(base):
            raise UsageError(
                f"only one model is given, and the {type(base).__name__} has no adapter to compare it with",
                remedy="pass the base and the tuned model",
            )
        return base_source(base), adapter_source(base)
    after: WeightSource
    if is_named(tuned):
        name = parse_name(str(tuned))
        if name.adapter is not None:
            raise UsageError(
                f"{printable(tuned)} names a base and an adapter, and the base is in memory",
                remedy="name the adapter alone",
            )
        after = _open_tuned(name, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    elif has_adapter(tuned):
        after = adapter_source(tuned)
    else:
        after = _one_side(tuned, "the tuned model", allow_pickle=allow_pickle)
    if not isinstance(after, (ModelSource, AdapterSource)):
        raise UsageError(f"{type(after).__name__} is no model", remedy="pass a model or an adapter")
    if has_adapter(base):
        if base is tuned:
            return base_source(base), after
        raise UsageError(
            "the base is a PeftModel; the base must be a model alone",
            remedy="pass its get_base_model(), or its name",
        )
    return _one_side(base, "the base", allow_pickle=allow_pickle), after


def _one_side(model: ModelLike, what: str, *, allow_pickle: bool) -> ModelSource:
    """Open one side that is a whole model."""
    from intruscope.adapters.in_memory import base_source

    if isinstance(model, ModelSource):
        return model
    if is_named(model):
        return open_model(str(model), allow_pickle=allow_pickle)
    if isinstance(model, Mapping):
        return mapping_source(model, name=f"{what} in memory")
    if hasattr(model, "state_dict"):
        return base_source(model)
    raise UsageError(
        f"{what} is a {type(model).__name__}",
        remedy="pass a path, a hub id, a transformers model, a PeftModel, or a mapping of names to tensors",
    )
