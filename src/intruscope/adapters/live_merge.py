"""A fine-tune as whole tensors: an adapter merged by PEFT, or a loaded checkpoint.

Merging is done in float32 or wider, on a copy whose tied weights are untied first: an adapter on a tied
embedding leaves the head alone in a forward pass, so merging must leave it alone as well.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.keys import PEFT_PREFIX, sort_keys
from intruscope.adapters.live_models import build, class_for, offline, quiet, require
from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from intruscope.adapters.opening import OpenedPair

_CLASSIFIER_ENDS = ("classifier", "score", "classifier.out_proj", "classifier.dense2", "logits_proj")
TaskHead = Literal["classes", "choices"]
"""What a head that is not a language model's returns: class logits, or a score for each of several texts."""
HEADS: dict[TaskHead, str] = {
    "classes": "AutoModelForSequenceClassification",
    "choices": "AutoModelForMultipleChoice",
}
"""The auto classes of transformers with these heads."""
_HEAD_MODULES = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Modules that PEFT saves for a task without being asked."""
_OTHER_TASKS = {
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A fine-tune as a plain model.

    Attributes:
        model: The model with its tuned weights, and no adapter left in it.
        head: Its head; None for a language model or a bare body.
        random: Names of its parameters that neither base nor adapter stores.
        from_base: The base's values of its parameters, by name, where they are known.
    """

    model: nn.Module
    head: TaskHead | None
    random: frozenset[str]
    from_base: Mapping[str, torch.Tensor]


def head_class(head: TaskHead, config: Any) -> type[nn.Module] | None:
    """The class of a model type with this head; None where transformers has none."""
    import transformers

    return class_for(getattr(transformers, HEADS[head]), config)


def untie(model: nn.Module) -> None:
    """Give every module its own parameter where several share one; values stay equal."""
    import torch

    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) in seen:
                own = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
                module._parameters[name] = own
                seen.add(id(own))
            seen.add(id(parameter))


def merge_adapter(
    adapter: AdapterSource,
    tensors: Mapping[str, torch.Tensor],
    config: Any,
    language_cls: type[nn.Module] | None,
    *,
    dtype: torch.dtype,
) -> Merged:
    """Put an adapter on its base with PEFT and merge it.

    Args:
        adapter: Opened, and known to match the base.
        tensors: The base's tensors, by stored name.
        config: The base's config.
        language_cls: The base's language-model class, if it has one.
        dtype: To merge in; float32 or wider.

    Raises:
        UnsupportedFormat: not PEFT's format, or a task that this base has no model for.
        MalformedInput: PEFT cannot load or merge it.
    """
    require("peft")
    if not adapter.kind.is_peft or adapter.config is None or adapter.config.options.get("enable_lora"):
        kind = "PEFT's first format" if adapter.kind.is_peft else adapter.kind.title
        raise UnsupportedFormat(
            f"this adapter is of {kind}, which no installed library can run",
            remedy="convert it to a PEFT adapter; it can be scanned as it is",
            file=adapter.path,
        )
    host_cls, head = host_class(adapter, config, language_cls)
    if head == "classes":
        config = with_labels(config, adapter)
    # transformers keeps tensors of the right dtype as they are, and PEFT loads trained biases into them.
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    host, missing = build(host_cls, config, own, dtype=dtype, file=adapter.path)
    _check_modules(host, adapter)
    before = {
        name: value.detach().clone() for name, value in host.state_dict().items() if name not in missing
    }
    untie(host)
    merged = _merge_with_peft(host, adapter)
    saved = _saved_names(adapter)
    random = {name for name in missing if not any(name.startswith(f"{module}.") for module in saved)}
    return Merged(model=merged, head=head, random=frozenset(random), from_base=before)


def place_adapter(
    opened: OpenedPair,
    tensors: Mapping[str, torch.Tensor],
    config: Any,
    language_cls: type[nn.Module] | None,
    *,
    dtype: torch.dtype,
) -> Merged:
    """Put the updates of an adapter that PEFT does not know into the base's tensors.

    Args:
        opened: The base and the adapter.
        tensors: The base's tensors, by stored name.
        config: The base's config.
        language_cls: The base's language-model class, if it has one.
        dtype: To merge in; float32 or wider.

    Raises:
        UnsupportedFormat: a task that this base has no model for.
        MalformedInput: a file changed since it was opened.
    """
    adapter = opened.tuned
    assert isinstance(adapter, AdapterSource)
    host_cls, head = host_class(adapter, config, language_cls)
    if head == "classes":
        config = with_labels(config, adapter)
    before, absent = build(host_cls, config, dict(tensors), dtype=dtype, file=adapter.path)
    known = {name: value for name, value in before.state_dict().items() if name not in absent}
    own = {name: tensor.to(dtype, copy=True) for name, tensor in tensors.items()}
    for pair in opened.pairing.pairs:
        pair.base.place(pair.load_float64()[1], own[pair.base.tensor.name])
    for vector in trained_vectors(adapter, opened.base):
        own[vector.target or _plain(vector.tensor.name)] = vector.tensor.read().to(dtype)
    for entry in opened.pairing.coverage:
        if entry.head == "new":
            own[_plain(entry.tensor)] = adapter.tensors[entry.tensor].read().to(dtype)
    model, missing = build(host_cls, config, own, dtype=dtype, file=adapter.path)
    untie(model)
    return Merged(model=model, head=head, random=frozenset(missing), from_base=known)


def merge_in_memory(tuned: Any) -> nn.Module:
    """A copy of a PeftModel with its adapters merged; the original is not changed.

    Raises:
        MalformedInput: its adapters cannot be merged.
    """
    import torch

    twin = copy.deepcopy(tuned)
    twin.unmerge_adapter()
    twin = twin.to(torch.promote_types(twin.dtype, torch.float32))
    untie(twin)
    with quiet():
        try:
            model: nn.Module = twin.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError) as error:
            fact = f"PEFT cannot merge this adapter: {printable(error)}"
            raise MalformedInput(fact, remedy="check its weights for NaN") from error
    return model.eval()


def host_class(
    adapter: AdapterSource, config: Any, language_cls: type[nn.Module] | None
) -> tuple[type[nn.Module], TaskHead | None]:
    """The class that the adapter was trained on, and its head."""
    import transformers

    task, trained_on = _trained_for(adapter)
    head: TaskHead | None = None
    choices = head_class("choices", config)
    if task is None and choices is not None and trained_on == choices.__name__:
        head = "choices"
    elif task == "SEQ_CLS" or (task is None and _num_labels(adapter) is not None):
        head = "classes"
    if head is not None:
        found = head_class(head, config)
    elif task in _OTHER_TASKS:
        found = class_for(getattr(transformers, _OTHER_TASKS[task]), config)
    elif task in (None, "CAUSAL_LM"):
        found = language_cls
        if task is not None and class_for(transformers.AutoModelForCausalLM, config) is None:
            found = None
    else:
        found = None
    if found is None:
        raise UnsupportedFormat(
            f"the adapter's task_type is {printable(task)}, but transformers has no such model of type "
            f"{printable(config.model_type)}, the base's",
            remedy=_wrong_task(adapter),
            file=adapter.path,
        )
    return found, head


def _trained_for(adapter: AdapterSource) -> tuple[str | None, str | None]:
    """The adapter's ``task_type``; and the class it was trained on, which PEFT stores for other tasks."""
    assert adapter.config is not None
    config = adapter.config.raw
    task, mapping = config.get("task_type"), config.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return (task if isinstance(task, str) and task else None), (name if isinstance(name, str) else None)


def _saved_names(adapter: AdapterSource) -> set[str]:
    """Names, in the model, of the modules that the adapter stores whole."""
    modules, skipped = sort_keys(adapter)
    saved = {name for name, module in modules.items() if "saved" in module.roles}
    return saved | {_plain(key).rpartition(".")[0] for key in skipped}


def _is_stored(module: str, saved: set[str]) -> bool:
    """Whether an adapter stores a module of this name, or a part of one, whole."""
    return any(f".{module}." in f".{name}." for name in saved)


def _plain(key: str) -> str:
    """The model's own name for a key of a module that the adapter stores whole."""
    return (
        key.removeprefix(PEFT_PREFIX)
        .replace(".modules_to_save.default.", ".")
        .replace(".modules_to_save.", ".")
    )


def _num_labels(adapter: AdapterSource) -> int | None:
    """Number of classes of the classifier that the adapter stores; None when it stores none."""
    for key, tensor in adapter.tensors.items():
        name = _plain(key)
        if len(tensor.shape) == 2 and any(name.endswith(f"{end}.weight") for end in _CLASSIFIER_ENDS):
            inner = name.removesuffix(".weight").rpartition(".")[2]
            if inner in ("dense",):
                continue
            return tensor.shape[0]
    return None


def with_labels(config: Any, adapter: AdapterSource) -> Any:
    """The config, with the number of labels of the stored classifier."""
    config = copy.deepcopy(config)
    count = _num_labels(adapter)
    if count is not None and count != config.num_labels:
        config.num_labels = count
    return config


def _check_modules(host: nn.Module, adapter: AdapterSource) -> None:
    """Refuse an adapter with modules that the model lacks, or that have another size in it.

    Raises:
        MalformedInput: a module is missing in the model.
        ShapeMismatch: a module that is stored whole has another shape, such as a resized vocabulary.
    """
    parameters = dict(host.named_parameters(remove_duplicate=False))
    names = {name for name, _ in host.named_modules()} | set(parameters)
    modules, _ = sort_keys(adapter)
    # The second parameter of fused experts wraps the first: its keys contain base_layer.
    plain = {name.removesuffix(".base_layer") for name in modules}
    lost = sorted(name for name in plain if name not in names)
    if lost:
        task, _ = _trained_for(adapter)
        raise MalformedInput(
            f"the adapter trained {_some(lost)}, which {type(host).__name__}, the base with task_type "
            f"{printable(task)}, does not have",
            remedy=_wrong_task(adapter),
            file=adapter.path,
        )
    for name, module in modules.items():
        stored = module.roles.get("saved") or module.roles.get("replaced")
        parameter = parameters.get(f"{name}.weight")
        if stored is None or parameter is None or tuple(parameter.shape) == stored.shape:
            continue
        words, base_words = stored.shape[0], parameter.shape[0]
        raise ShapeMismatch(
            f"the shape is {list(stored.shape)}, but {list(parameter.shape)} in the base: losses over a "
            f"vocabulary of {words} words cannot be compared with one of {base_words}",
            remedy=f"merge the adapter, call resize_token_embeddings({base_words}) on it, and save it",
            file=adapter.path,
            tensor=stored.name,
        )


def _some(modules: Sequence[str]) -> str:
    """The first of several modules by name, and how many more there are."""
    if not modules:
        return "no module"
    shown = ", ".join(map(printable, modules[:3]))
    return shown if len(modules) <= 3 else f"{shown} and {len(modules) - 3} more modules"


def _wrong_task(adapter: AdapterSource) -> str:
    return f"correct task_type in adapter_config.json, or give the adapter's own base{_own_base(adapter)}"


def _own_base(adapter: AdapterSource) -> str:
    """The base that an adapter names, in brackets, where it names one."""
    return f" (it names {printable(adapter.base_name)})" if adapter.base_name else ""


def _merge_with_peft(host: nn.Module, adapter: AdapterSource) -> nn.Module:
    """Wrap the host in PEFT's layers, fill them with the adapter's tensors as read by us, and merge."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    modules, _ = sort_keys(adapter)
    # Fused experts are not layers: target_parameters names them.
    layers = {name for name, module in host.named_modules() if hasattr(module, "weight")}
    trained = {name for name, module in modules.items() if module.has_factors}
    saved = _saved_names(adapter)
    numbers = {name: tensor.read() for name, tensor in adapter.tensors.items()}
    assert adapter.config is not None
    try:
        with quiet(), offline():
            config = PeftConfig.from_peft_type(**adapter.config.raw)
            # The keys say what was trained. The config's patterns are regular expressions of a stranger,
            # which may never end; those for ranks were tried in a separate process before.
            config.target_modules = trained & layers
            config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
            # PEFT's classes for tasks expect a stored head, or a causal model, whether it is there or not.
            listed = (*(config.modules_to_save or ()), *_HEAD_MODULES.get(config.task_type, ()))
            config.modules_to_save = [name for name in dict.fromkeys(listed) if _is_stored(name, saved)]
            config.inference_mode = True
            wrapped = PeftModel(host, config)
            ignored = set_peft_model_state_dict(wrapped, numbers).unexpected_keys
            merged: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, AttributeError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) and error.args else error
        raise MalformedInput(
            f"PEFT cannot load and merge this adapter of {_some(sorted(trained | saved))} into "
            f"{type(host).__name__} ({printable(reason)})",
            remedy="check its weights for NaN, its adapter_config.json, and that it was trained on this base"
            f"{_own_base(adapter)}",
            file=adapter.path,
        ) from error
    if ignored:
        raise MalformedInput(
            f"PEFT leaves out {len(ignored)} tensors, such as {printable(min(ignored))}, because the "
            "adapter's config does not mention them",
            remedy="restore the adapter's original adapter_config.json (modules_to_save, lora_bias ...)",
            file=adapter.path,
        )
    return merged.eval()
