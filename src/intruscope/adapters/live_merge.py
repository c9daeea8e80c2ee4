"""What a fine-tune is as whole tensors: an adapter merged by PEFT, or a checkpoint loaded.

Merging is done in float32 or wider on a copy whose tied weights were untied first: an adapter on a tied
embedding leaves the head alone when it runs, and so it must when it is merged.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from intruscope.adapters.keys import PEFT_PREFIX, sort_keys
from intruscope.adapters.live_models import build, class_for, offline, quiet, require
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from intruscope.adapters.folder import AdapterSource

_CLASSIFIER_ENDS = ("classifier", "score", "classifier.out_proj", "classifier.dense2", "logits_proj")
Head = Literal["classes", "choices"]
"""What a model says of texts, where it is no language model: a class, or a score for each of several."""
HEADS: dict[Head, str] = {
    "classes": "AutoModelForSequenceClassification",
    "choices": "AutoModelForMultipleChoice",
}
"""The auto classes of transformers that have these heads."""
_OTHER_TASKS = {
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A fine-tune as a plain model.

    Attributes:
        model: With the tuned weights in place; no adapter is left in it.
        head: What it says of texts; None of a language model, or a bare body.
        random: Names of its parameters that neither base nor adapter holds.
        from_base: Names of its parameters whose base value is known, with that value.
    """

    model: nn.Module
    head: Head | None
    random: frozenset[str]
    from_base: Mapping[str, torch.Tensor]


def head_class(head: Head, config: Any) -> type[nn.Module] | None:
    """The class of a model type that has this head; None where transformers has none."""
    import transformers

    return class_for(getattr(transformers, HEADS[head]), config)


def untie(model: nn.Module) -> None:
    """Give every module a parameter of its own where several share one; values stay equal."""
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
        tensors: The base's numbers, by stored name.
        config: The base's.
        language_cls: Its language-model class, if it has one.
        dtype: To merge in; float32 or wider.

    Raises:
        UnsupportedFormat: not PEFT's format, or a task that cannot be told.
        MalformedInput: PEFT cannot load or merge it.
    """
    require("peft")
    if adapter.format != "peft" or adapter.config is None or adapter.config.enable_lora is not None:
        kind = "PEFT's first" if adapter.format == "peft" else f"{adapter.format}'s"
        raise UnsupportedFormat(
            f"got an adapter of {kind} format, which no installed library runs, expected one that PEFT loads",
            remedy="convert it to a PEFT adapter; it can be scanned as it is",
            file=adapter.path,
        )
    host_cls, head = host_class(adapter, config, language_cls)
    if head == "classes":
        config = with_labels(config, adapter)
    # transformers takes tensors of the right dtype as they are, and PEFT loads trained biases into them.
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


def merge_in_memory(tuned: Any) -> nn.Module:
    """A copy of a PeftModel with its adapters merged; the original stays as it is.

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
            fact = f"got an adapter that PEFT cannot merge ({printable(error)}), expected a mergeable one"
            raise MalformedInput(fact, remedy="check its weights for NaN, or use another method") from error
    return model.eval()


def host_class(
    adapter: AdapterSource, config: Any, language_cls: type[nn.Module] | None
) -> tuple[type[nn.Module], Head | None]:
    """The class that the adapter was trained on, and its head."""
    import transformers

    task, trained_on = _told(adapter)
    head: Head | None = None
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
            f"got an adapter for the task {printable(task)}, which model type {printable(config.model_type)} "
            "cannot be loaded for, expected a language model or a classifier",
            remedy="check that this adapter is for this base",
            file=adapter.path,
        )
    return found, head


def _told(adapter: AdapterSource) -> tuple[str | None, str | None]:
    """PEFT's word for the task; and for a task that it has no word for, the name of the class."""
    from intruscope.weights.strict_json import read_json_object

    assert adapter.config is not None
    config = read_json_object(adapter.config.path)
    task, mapping = config.get("task_type"), config.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return (task if isinstance(task, str) and task else None), (name if isinstance(name, str) else None)


def _saved_names(adapter: AdapterSource) -> set[str]:
    """Modules that the adapter stores whole, as their names in the model."""
    modules, skipped = sort_keys(adapter)
    saved = {name for name, module in modules.items() if "saved" in module.roles}
    return saved | {_plain(key).rpartition(".")[0] for key in skipped}


def _plain(key: str) -> str:
    """An adapter's key as the model's own name, where it stores the module whole."""
    return (
        key.removeprefix(PEFT_PREFIX)
        .replace(".modules_to_save.default.", ".")
        .replace(".modules_to_save.", ".")
    )


def _num_labels(adapter: AdapterSource) -> int | None:
    """Classes of the classifier that the adapter stores; None when it stores none."""
    for key, tensor in adapter.tensors.items():
        name = _plain(key)
        if len(tensor.shape) == 2 and any(name.endswith(f"{end}.weight") for end in _CLASSIFIER_ENDS):
            inner = name.removesuffix(".weight").rpartition(".")[2]
            if inner in ("dense",):
                continue
            return tensor.shape[0]
    return None


def with_labels(config: Any, adapter: AdapterSource) -> Any:
    """The config with as many labels as the stored classifier has."""
    config = copy.deepcopy(config)
    count = _num_labels(adapter)
    if count is not None and count != config.num_labels:
        config.num_labels = count
    return config


def _check_modules(host: nn.Module, adapter: AdapterSource) -> None:
    """Every module that the adapter trained must be in the model that it is put on, and of its size.

    Raises:
        MalformedInput: a module is not there.
        ShapeMismatch: one that is stored whole has another shape, such as a resized vocabulary.
    """
    parameters = dict(host.named_parameters(remove_duplicate=False))
    names = {name for name, _ in host.named_modules()} | set(parameters)
    modules, _ = sort_keys(adapter)
    # The second parameter of fused experts is wrapped around the first: its keys say base_layer.
    plain = {name.removesuffix(".base_layer") for name in modules}
    lost = sorted(name for name in plain if name not in names)
    if lost:
        raise MalformedInput(
            f"got weights for {printable(lost[0])} ({len(lost)} modules), which {type(host).__name__} has "
            "not, expected an adapter whose names are this model's",
            remedy="check task_type in adapter_config.json, and that this adapter is for this base",
            file=adapter.path,
        )
    for name, module in modules.items():
        stored = module.roles.get("saved") or module.roles.get("replaced")
        parameter = parameters.get(f"{name}.weight")
        if stored is None or parameter is None or tuple(parameter.shape) == stored.shape:
            continue
        words, base_words = stored.shape[0], parameter.shape[0]
        raise ShapeMismatch(
            f"got {list(stored.shape)}, expected {list(parameter.shape)} as in the base: a vocabulary of "
            f"{words} words cannot be compared with one of {base_words}",
            remedy=f"merge the adapter, cut it back with resize_token_embeddings({base_words}), and save it",
            file=adapter.path,
            tensor=stored.name,
        )


def _merge_with_peft(host: nn.Module, adapter: AdapterSource) -> nn.Module:
    """PEFT's own layers around the host, filled with the adapter's numbers as we read them, and merged."""
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel, set_peft_model_state_dict

    modules, _ = sort_keys(adapter)
    # Fused experts are no layers: target_parameters names them.
    layers = {name for name, module in host.named_modules() if hasattr(module, "weight")}
    trained = {name for name, module in modules.items() if "down" in module.roles}
    numbers = {name: tensor.read() for name, tensor in adapter.tensors.items()}
    assert adapter.config is not None
    try:
        with quiet(), offline():
            config = PeftConfig.from_pretrained(str(adapter.config.path.parent))
            # What was trained is known from the keys. The config's own patterns are a stranger's expressions,
            # which may run for ever; those for ranks were tried in a process of their own before.
            config.target_modules = trained & layers
            config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
            config.inference_mode = True
            cls = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
            wrapped = cls(host, config)
            ignored = set_peft_model_state_dict(wrapped, numbers).unexpected_keys
            merged: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, AttributeError) as error:
        raise MalformedInput(
            f"got an adapter that PEFT cannot load and merge ({printable(error)}), expected a sound one",
            remedy="check its weights for NaN, its shapes, and that it is for this base",
            file=adapter.path,
        ) from error
    if ignored:
        raise MalformedInput(
            f"got {len(ignored)} tensors that PEFT leaves out (such as {printable(min(ignored))}), expected "
            "the config to tell of all of them",
            remedy="restore the adapter's own adapter_config.json (modules_to_save, lora_bias ...)",
            file=adapter.path,
        )
    return merged.eval()
