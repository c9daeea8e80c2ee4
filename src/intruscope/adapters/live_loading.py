"""From a base and its fine-tune, as files or in memory, to one :class:`LivePair`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.kinds.lora import why_moved
from intruscope.adapters.live_assembly import Start, assemble
from intruscope.adapters.live_merge import (
    HEADS,
    Merged,
    head_class,
    merge_adapter,
    merge_in_memory,
    place_adapter,
    untie,
)
from intruscope.adapters.live_models import (
    NO_HEAD_REMEDY,
    build,
    class_for,
    config_of,
    language_class,
    read_tensors,
)
from intruscope.adapters.live_tokenizers import choose_tokenizers
from intruscope.adapters.twins import without_adapters
from intruscope.errors import IntruscopeError, MalformedInput, ShapeMismatch, UsageError, printable
from intruscope.weights.names import parse_name
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import OpenedPair


def load_opened(
    opened: OpenedPair,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    tokenizer: Any = None,
) -> LivePair:
    """Load two opened models as one.

    Args:
        opened: Both, from files.
        device: A torch device.
        dtype: Of weights and computation: ``float32``, ``bfloat16``, ``float16`` or ``float64``. Adapters are
            merged in float32 or wider and then rounded.
        tokenizer: A tokenizer, or the folder of one; by default the base's, or else the tuned model's.

    Raises:
        MalformedInput: the models do not fit each other, or a file is damaged.
        UnsupportedFormat: a kind of model or adapter that cannot run, by name.
        UsageError: no tokenizer, or transformers or peft is not installed.
    """
    base, tuned = opened.base, opened.tuned
    config = config_of(base)
    tensors = read_tensors(base)
    start = base_language(base, config, tensors, _merge_dtype(dtype))
    if isinstance(tuned, AdapterSource) and tuned.kind.file_above:
        merged = place_adapter(opened, tensors, config, start.cls, dtype=_merge_dtype(dtype))
    elif isinstance(tuned, AdapterSource):
        merged = merge_adapter(tuned, tensors, config, start.cls, dtype=_merge_dtype(dtype))
    else:
        merged = _whole_model(base, tuned, config, tensors, start.cls, dtype=_merge_dtype(dtype))
    return assemble(
        start,
        merged,
        choose_tokenizers(tokenizer, tokenizer_folder(base), tokenizer_folder(tuned)),
        dtype=dtype,
        device=device,
        description=(base.name, tuned.name),
    )


def load_modules(
    base: nn.Module | ModelSource,
    tuned: nn.Module,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    tokenizer: Any = None,
) -> LivePair:
    """Copy a tuned model in memory (such as a PeftModel) and its base into one live pair.

    The given models are not changed. The base may be the model inside the PeftModel: the copy drops its
    adapters.

    Raises:
        UsageError: what is in memory is no longer the base, or no tokenizer is known.
        MalformedInput: the models do not fit each other, or adapters cannot be merged.
    """
    merge_dtype = _merge_dtype(dtype)
    if isinstance(base, ModelSource):
        config = config_of(base)
        start = base_language(base, config, read_tensors(base), merge_dtype)
        folder: Path | None = tokenizer_folder(base)
        name = base.name
    else:
        start = _module_language(pristine_base(base, tuned).to(merge_dtype))
        folder, name = None, "the base in memory"
    if hasattr(tuned, "merge_and_unload"):
        tuned_model = merge_in_memory(tuned)
    else:
        tuned_model = copy.deepcopy(tuned).to(merge_dtype).eval()
        untie(tuned_model)
    merged = Merged(
        model=tuned_model,
        head=next(
            (head for head, auto in HEADS.items() if _ends_like(type(tuned_model).__name__, auto)), None
        ),
        random=frozenset(),
        from_base=dict(start.model.state_dict()) if start.model is not None else {},
    )
    chosen = tokenizer if tokenizer is not None or folder is not None else _name_of(tuned_model)
    return assemble(
        start,
        merged,
        choose_tokenizers(chosen, folder, None),
        dtype=dtype,
        device=device,
        description=(name, "the tuned model in memory"),
    )


def _ends_like(name: str, auto: str) -> bool:
    return name.endswith(auto.removeprefix("AutoModel"))


def _merge_dtype(dtype: str) -> torch.dtype:
    import torch

    return torch.promote_types(getattr(torch, dtype), torch.float32)


def _name_of(model: nn.Module) -> str | None:
    """The local folder that a model in memory was loaded from, if there is one."""
    name = getattr(model.config, "name_or_path", "")
    return name if name and Path(str(name)).is_dir() else None


def base_language(base: ModelSource, config: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Start:
    """The base as a language model, or the error that explains why it is none.

    Args:
        base: From files.
        config: transformers' config of the base.
        tensors: Its weights, by stored name.
        dtype: Of the model.

    Raises:
        IntruscopeError: the weights do not fit the config.
    """
    stored = tuple(base.tensors)
    try:
        cls, kind = language_class(config, file=base.path)
    except IntruscopeError as error:
        return Start(model=None, cls=None, kind="causal", problem=error, stored_names=stored)
    model, missing = build(cls, config, tensors, dtype=dtype, file=base.path)
    if not missing:
        return Start(model=model, cls=cls, kind=kind, problem=None, stored_names=stored)
    problem = MalformedInput(
        f"the base is without a language-model head ({printable(min(missing))} is missing)",
        remedy=NO_HEAD_REMEDY,
        file=base.path,
    )
    return Start(model=None, cls=cls, kind=kind, problem=problem, stored_names=stored)


def _module_language(model: nn.Module) -> Start:
    stored = tuple(model.state_dict())
    try:
        cls, kind = language_class(model.config, file="the base in memory")
    except IntruscopeError as error:
        return Start(model=None, cls=None, kind="causal", problem=error, stored_names=stored)
    if isinstance(model, cls):
        return Start(model=model.eval(), cls=cls, kind=kind, problem=None, stored_names=stored)
    problem = UsageError(
        f"the base in memory is a {type(model).__name__} without a language-model head, not a {cls.__name__}",
        remedy=NO_HEAD_REMEDY,
    )
    return Start(model=None, cls=cls, kind=kind, problem=problem, stored_names=stored)


def pristine_base(base: nn.Module, tuned: Any) -> nn.Module:
    """A copy of the base in memory, without adapters.

    Raises:
        UsageError: what is in memory is no longer the base.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    adapted = (BaseTunerLayer, ModulesToSaveWrapper)
    if not any(isinstance(module, adapted) for module in base.modules()):
        return copy.deepcopy(base)
    remedy = "give the base by name or path, so that it is loaded again"
    if not hasattr(tuned, "get_base_model") or tuned.get_base_model() is not base:
        fact = "the base in memory carries an adapter of another model"
        raise UsageError(fact, remedy=remedy)
    for config in tuned.peft_config.values():
        why = why_moved(config)
        if why is not None:
            fact = f"the base in memory is no longer the base: it carries the adapter, and {why}"
            raise UsageError(fact, remedy=remedy)
    twin: Any = copy.deepcopy(tuned)
    twin.unmerge_adapter()
    return without_adapters(twin)


def _whole_model(
    base: ModelSource,
    tuned: ModelSource,
    config: Any,
    base_tensors: Mapping[str, Tensor],
    language_cls: type[nn.Module] | None,
    *,
    dtype: torch.dtype,
) -> Merged:
    """A full checkpoint, loaded in the class that it was saved from."""
    import transformers

    tuned_config = config_of(tuned) if tuned.config else config
    if tuned_config.model_type != config.model_type:
        raise MalformedInput(
            f"the tuned model is of type {printable(tuned_config.model_type)} and the base of type "
            f"{printable(config.model_type)}",
            remedy="check that the tuned model was trained from this base",
            file=tuned.path,
        )
    _check_vocabulary(config, tuned_config, tuned.path)
    heads = {head: head_class(head, tuned_config) for head in HEADS}
    named = tuned_config.architectures or ()
    head = next((head for head, cls in heads.items() if cls is not None and cls.__name__ in named), None)
    cls = heads[head] if head is not None else language_cls
    cls = cls or class_for(transformers.AutoModel, tuned_config)
    assert cls is not None
    model, missing = build(cls, tuned_config, read_tensors(tuned), dtype=dtype, file=tuned.path)
    known: dict[str, Tensor] = {}
    if head is not None:
        twin, absent = build(cls, tuned_config, base_tensors, dtype=dtype, file=base.path)
        known = {name: value for name, value in twin.state_dict().items() if name not in absent}
    untie(model)
    return Merged(model=model, head=head, random=frozenset(missing), from_base=known)


def _check_vocabulary(config: Any, tuned_config: Any, file: Path | None) -> None:
    words, tuned_words = getattr(config, "vocab_size", None), getattr(tuned_config, "vocab_size", None)
    if words != tuned_words:
        raise ShapeMismatch(
            f"the tuned model has a vocabulary of {tuned_words} words and the base one of {words}: losses "
            "over different vocabularies cannot be compared",
            remedy=f"call resize_token_embeddings({words}) on the tuned model, and save it",
            file=file,
        )


def tokenizer_folder(source: ModelSource | AdapterSource) -> Path:
    """The folder of a model's tokenizer; for a hub id, it is downloaded first."""
    if source.revision is not None:
        from intruscope.weights.hub import download_model

        name = parse_name(source.name)
        name = name.adapter if isinstance(source, AdapterSource) and name.adapter is not None else name
        if name.hub_id is not None:
            return download_model(name.hub_id, revision=source.revision, with_tokenizer=True)[0]
    return source.folder
