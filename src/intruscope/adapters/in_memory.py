"""Models in memory as sources: a module's own weights, and the active adapter of a PeftModel.

Nothing is copied, moved or merged; the tensors are the model's own, and are only read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intruscope.adapters.config import checked_config
from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.kinds.lora import why_moved
from intruscope.adapters.live_models import quiet, require
from intruscope.errors import UsageError, printable
from intruscope.weights.architecture import module_classes
from intruscope.weights.memory import memory_source, memory_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.weights.architecture import ModuleClass
    from intruscope.weights.source import ModelSource


def has_adapter(model: object) -> bool:
    """Whether this is a PeftModel."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_source(model: Any) -> ModelSource:
    """A module's own weights under the names that a checkpoint gives them, without any adapter.

    Args:
        model: A transformers module, or any other; a PeftModel, or the module inside one. Weights may lie on
            several devices.

    Raises:
        UsageError: its own weights are no longer the base's (merged, or trained in place).
        UnsupportedFormat: weights without numbers, or sharded over processes.
    """
    inner: Any = model.get_base_model() if has_adapter(model) else model
    inner = getattr(inner, "_orig_mod", inner)  # of torch.compile
    configs = getattr(model, "peft_config", None) or getattr(inner, "peft_config", None) or {}
    for config in configs.values():
        check_unmoved(config)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    wrappers = wrapper_layers(inner)
    for stored, tensor in inner.state_dict().items():
        name = _plain_name(stored, wrappers)
        if name is None:
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and not tensor.is_meta and place in seen:
            continue  # tied: a checkpoint stores it once
        seen.add(place)
        tensors[name] = tensor
    config = inner.config.to_dict() if hasattr(getattr(inner, "config", None), "to_dict") else {}
    title = f"{type(inner).__name__} in memory"
    return memory_source(tensors, config=config, name=title, classes=_classes(inner, wrappers))


def _classes(inner: Any, wrappers: Mapping[str, Any]) -> dict[str, ModuleClass]:
    """What each module is, by the names of a checkpoint."""
    found = {}
    for name, kind in module_classes(inner).items() if hasattr(inner, "named_modules") else ():
        plain = _plain_name(f"{name}.weight", wrappers)
        if plain is not None:
            found[plain.removesuffix(".weight")] = kind
    return found


def wrapper_layers(inner: Any) -> dict[str, Any]:
    """Names of PEFT's layers and other wrappers, outermost first, with the modules.

    Raises:
        UsageError: a layer whose adapter is merged: its weight is no longer the base's.
    """
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    for name, module in inner.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            if getattr(module, "merged", False):
                raise UsageError(
                    f"the adapter is merged into {printable(name)}, so that the base's weights are gone",
                    remedy="call unmerge_adapter() first, or give the base by its name or path",
                )
            found[name] = module
    return found


def _plain_name(name: str, wrappers: Mapping[str, Any]) -> str | None:
    """The base's name of a parameter of the state dict; None for what an adapter added."""
    words = name.split(".")
    for depth in range(len(words) - 1, 0, -1):
        path = ".".join(words[:depth])
        if path not in wrappers:
            continue
        if words[depth] not in ("base_layer", "original_module"):
            return None
        words = words[:depth] + words[depth + 1 :]
    return ".".join(words)


def check_unmoved(config: Any) -> None:
    """Refuse a model whose adapter, of this config, changed its base.

    Raises:
        UsageError: it is one.
    """
    why = why_moved(config)
    if why is not None:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UsageError(
            f"the model carries a {kind} adapter, and {why}: it is no longer the base",
            remedy="give the base by its name or path, or as a model of its own",
        )


def adapter_source(model: Any) -> AdapterSource:
    """The active adapter of a PeftModel, with the keys and the config that it would be saved with.

    Raises:
        UsageError: no adapter is active, more than one is, or it is disabled or merged.
        UnsupportedFormat: a kind or an option that is not read, by name.
    """
    require("peft")
    from peft import get_peft_model_state_dict

    active = list(model.active_adapters)
    if len(active) != 1:
        names = ", ".join(map(printable, active)) or "none"
        raise UsageError(
            f"the PeftModel has {len(active)} active adapters ({names}); one adapter is scanned at a time",
            remedy="choose one with set_adapter",
        )
    wrappers = wrapper_layers(model.get_base_model())
    if wrappers and all(getattr(module, "disable_adapters", False) for module in wrappers.values()):
        raise UsageError(
            "the adapter is disabled, so that the model computes what its base does",
            remedy="call enable_adapter_layers(), or leave the disable_adapter() block",
        )
    kind, config = checked_config(_as_saved(model.peft_config[active[0]]), None)
    with quiet():
        state = get_peft_model_state_dict(model, adapter_name=active[0], save_embedding_layers=False)
    return AdapterSource(
        name=f"{type(model).__name__} in memory",
        path=None,
        kind=kind,
        config=config,
        tensors={key: memory_tensor(key, tensor) for key, tensor in state.items()},
        inputs=(),
    )


def _as_saved(config: Any) -> dict[str, Any]:
    """A PEFT config as ``adapter_config.json`` would hold it."""

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", str(value))

    saved: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=plain))
    return saved
