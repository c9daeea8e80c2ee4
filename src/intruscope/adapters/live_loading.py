"""A base and its fine-tune, from files or from memory, to one :class:`LivePair`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.config import moves_the_base
from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.live import LanguageModel, LivePair, Place, TaskModel
from intruscope.adapters.live_merge import Merged, merge_adapter, merge_in_memory, untie
from intruscope.adapters.live_models import (
    NO_HEAD_REMEDY,
    build,
    class_for,
    config_of,
    language_class,
    max_context,
    quiet,
    read_tensors,
    require,
)
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import IntruscopeError, MalformedInput, ShapeMismatch, UsageError, printable
from intruscope.weights.layout import base_matrices
from intruscope.weights.pairing import find_prefixes, pair_checkpoints
from intruscope.weights.source import ModelSource
from intruscope.weights.stored import FileStamp, StoredTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import Tensor, nn

    from intruscope.adapters.live_models import LanguageKind

_NO_TASK = UsageError(
    "got a tuned model that classifies no sequences, expected a classifier",
    remedy="give a task of multiple choice or held-out text, or a model with a classification head",
)


def load_sources(
    base: ModelSource,
    tuned: ModelSource | AdapterSource,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    tokenizer: Any = None,
) -> LivePair:
    """Load two opened models as one.

    Args:
        base: The model before.
        tuned: A whole model, or an adapter of the base.
        device: A torch device.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``: of the weights and of the computation.
            Adapters are merged in float32 or wider and then rounded to it.
        tokenizer: One, or the folder of one; the base's, or else the tuned model's, by default.

    Raises:
        MalformedInput: the models do not fit each other, or a file is damaged.
        UnsupportedFormat: a kind that cannot run here, by name.
        UsageError: no tokenizer, or transformers or peft is not installed.
    """
    config = config_of(base)
    tensors = read_tensors(base)
    start = _base_language(base, config, tensors, _merge_dtype(dtype))
    if isinstance(tuned, AdapterSource):
        pair_adapter(base, tuned)  # refuses what does not fit, where PEFT would only warn
        merged = merge_adapter(tuned, tensors, config, start.cls, dtype=_merge_dtype(dtype))
    else:
        merged = _whole_model(base, tuned, config, tensors, start.cls, dtype=_merge_dtype(dtype))
    tuned_folder = tuned.path.parent if isinstance(tuned, AdapterSource) else _folder(tuned)
    return _assemble(
        start,
        merged,
        choose_tokenizers(tokenizer, _folder(base), tuned_folder),
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
    """A tuned model in memory (a PeftModel, say) and its base, in memory or by name, as one live copy.

    The models given are left as they are. The base may be the model inside the PeftModel: its adapters are
    taken off in the copy.

    Raises:
        UsageError: what is in memory is no longer the base, or no tokenizer is known.
        MalformedInput: the models do not fit each other, or adapters cannot be merged.
    """
    merge_dtype = _merge_dtype(dtype)
    if isinstance(base, ModelSource):
        config = config_of(base)
        start = _base_language(base, config, read_tensors(base), merge_dtype)
        folder: Path | None = _folder(base)
        name = base.name
    else:
        start = _module_language(_pristine(base, tuned).to(merge_dtype))
        folder, name = None, "the base in memory"
    if hasattr(tuned, "merge_and_unload"):
        tuned_model = merge_in_memory(tuned)
    else:
        tuned_model = copy.deepcopy(tuned).to(merge_dtype).eval()
        untie(tuned_model)
    merged = Merged(
        model=tuned_model,
        is_classifier=type(tuned_model).__name__.endswith("ForSequenceClassification"),
        random=frozenset(),
        from_base=dict(start.model.state_dict()) if start.model is not None else {},
    )
    told = tokenizer if tokenizer is not None or folder is not None else _name_of(tuned_model)
    return _assemble(
        start,
        merged,
        choose_tokenizers(told, folder, None),
        dtype=dtype,
        device=device,
        description=(name, "the tuned model in memory"),
    )


def _merge_dtype(dtype: str) -> torch.dtype:
    import torch

    return torch.promote_types(getattr(torch, dtype), torch.float32)


def _name_of(model: nn.Module) -> str | None:
    """Where a model in memory was loaded from, if that is a folder here."""
    name = getattr(model.config, "name_or_path", "")
    return name if name and Path(str(name)).is_dir() else None


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The base as a language model, or why it is none.

    Attributes:
        model: None when there is no head.
        cls: Its class; None when transformers has none for the model type.
        stored_names: Of its tensors.
    """

    model: nn.Module | None
    cls: type[nn.Module] | None
    kind: LanguageKind
    problem: IntruscopeError | None
    stored_names: tuple[str, ...]


def _base_language(
    base: ModelSource, config: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> _Start:
    stored = tuple(base.tensors)
    try:
        cls, kind = language_class(config, file=base.path)
    except IntruscopeError as error:
        return _Start(model=None, cls=None, kind="causal", problem=error, stored_names=stored)
    model, missing = build(cls, config, tensors, dtype=dtype, file=base.path)
    if not missing:
        return _Start(model=model, cls=cls, kind=kind, problem=None, stored_names=stored)
    problem = MalformedInput(
        f"got a base without a language-model head ({printable(min(missing))} is not in it), expected one",
        remedy=NO_HEAD_REMEDY,
        file=base.path,
    )
    return _Start(model=None, cls=cls, kind=kind, problem=problem, stored_names=stored)


def _module_language(model: nn.Module) -> _Start:
    stored = tuple(model.state_dict())
    try:
        cls, kind = language_class(model.config, file="the base in memory")
    except IntruscopeError as error:
        return _Start(model=None, cls=None, kind="causal", problem=error, stored_names=stored)
    if isinstance(model, cls):
        return _Start(model=model.eval(), cls=cls, kind=kind, problem=None, stored_names=stored)
    problem = UsageError(
        f"got a {type(model).__name__} as the base, without a language-model head, expected a {cls.__name__}",
        remedy=NO_HEAD_REMEDY,
    )
    return _Start(model=None, cls=cls, kind=kind, problem=problem, stored_names=stored)


def _pristine(base: nn.Module, tuned: Any) -> nn.Module:
    """A copy of the base in memory, adapters off.

    Raises:
        UsageError: what is in memory is no longer the base.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        return copy.deepcopy(base)
    remedy = "give the base by its name or path: it is loaded afresh"
    if not hasattr(tuned, "get_base_model") or tuned.get_base_model() is not base:
        fact = "got a base that carries an adapter of another model, expected the untouched base"
        raise UsageError(fact, remedy=remedy)
    for config in tuned.peft_config.values():
        bias = getattr(config, "bias", "none")
        moved = moves_the_base(getattr(config, "init_lora_weights", True))
        if moved or bias != "none":
            what = "its initialisation moved the weights" if moved else f"bias='{bias}' trained the biases"
            fact = f"got a base that carries the adapter, and {what} in place, expected the untouched base"
            raise UsageError(fact, remedy=remedy)
    twin: Any = copy.deepcopy(tuned)
    twin.unmerge_adapter()
    plain: nn.Module = twin.unload()
    return plain


def _whole_model(
    base: ModelSource,
    tuned: ModelSource,
    config: Any,
    base_tensors: Mapping[str, Tensor],
    language_cls: type[nn.Module] | None,
    *,
    dtype: torch.dtype,
) -> Merged:
    """A full checkpoint in the class that it was saved from."""
    import transformers

    tuned_config = config_of(tuned) if tuned.config else config
    if tuned_config.model_type != config.model_type:
        raise MalformedInput(
            f"got a model of type {printable(tuned_config.model_type)}, expected the base's "
            f"{printable(config.model_type)}",
            remedy="check that the tuned model was made from this base",
            file=tuned.path,
        )
    _check_vocabulary(config, tuned_config, tuned.path)
    pair_checkpoints(base, tuned)  # refuses other shapes by name
    classifier = class_for(transformers.AutoModelForSequenceClassification, tuned_config)
    is_classifier = classifier is not None and classifier.__name__ in (tuned_config.architectures or ())
    cls = classifier if is_classifier else language_cls or class_for(transformers.AutoModel, tuned_config)
    assert cls is not None
    model, missing = build(cls, tuned_config, read_tensors(tuned), dtype=dtype, file=tuned.path)
    known: dict[str, Tensor] = {}
    if is_classifier:
        twin, absent = build(cls, tuned_config, base_tensors, dtype=dtype, file=base.path)
        known = {name: value for name, value in twin.state_dict().items() if name not in absent}
    untie(model)
    return Merged(model=model, is_classifier=is_classifier, random=frozenset(missing), from_base=known)


def _check_vocabulary(config: Any, tuned_config: Any, file: Path) -> None:
    words, tuned_words = getattr(config, "vocab_size", None), getattr(tuned_config, "vocab_size", None)
    if words != tuned_words:
        raise ShapeMismatch(
            f"got a vocabulary of {tuned_words} words, expected {words} as in the base: losses over "
            "different vocabularies cannot be compared",
            remedy=f"cut the tuned model back with resize_token_embeddings({words}) and save it",
            file=file,
        )


def _folder(source: ModelSource) -> Path:
    return source.path if source.path.is_dir() else source.path.parent


def choose_tokenizers(given: Any, base: Path | None, tuned: Path | None) -> tuple[Any, Any]:
    """The tokenizers of the language model and of the task.

    Args:
        given: A tokenizer, the folder of one, or None.
        base: The base's folder.
        tuned: The tuned model's.

    Raises:
        UsageError: there is none.
        MalformedInput: base and tuned give the same words different numbers.
    """
    if given is not None:
        found = open_tokenizer(Path(given)) if isinstance(given, (str, Path)) else given
        if found is None:
            fact = "got no tokenizer there, expected tokenizer.json or the like"
            raise UsageError(fact, remedy="name the folder that holds it", file=given)
        return found, found
    first = open_tokenizer(base) if base is not None else None
    second = open_tokenizer(tuned) if tuned is not None else None
    if first is None and second is None:
        fact = "got no tokenizer beside the base nor the tuned model, expected one"
        raise UsageError(fact, remedy="name its folder with --tokenizer (tokenizer= in Python)", file=base)
    if first is not None and second is not None:
        words, tuned_words = first.get_vocab(), second.get_vocab()
        other = next((word for word, number in words.items() if tuned_words.get(word) != number), None)
        if other is not None:
            raise MalformedInput(
                f"got tokenizers that disagree: '{printable(other)}' is {words[other]} in the base and "
                f"{tuned_words.get(other)} in the tuned model, expected words to keep their numbers",
                remedy="name the one that both were trained with: --tokenizer FOLDER",
                file=tuned,
            )
    return first or second, second or first


def open_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a folder; None when it holds none.

    Raises:
        MalformedInput: it holds one that cannot be read.
    """
    require("transformers")
    from transformers import AutoTokenizer

    names = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tokenizer_config.json",
    )
    if not any((folder / name).exists() for name in names):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file provokes in there
        raise MalformedInput(
            f"got a tokenizer that cannot be read ({printable(error)}), expected a whole one",
            remedy="download it again, or give another with --tokenizer",
            file=folder,
        ) from error


def _assemble(
    start: _Start,
    merged: Merged,
    tokenizers: tuple[Any, Any],
    *,
    dtype: str,
    device: str,
    description: tuple[str, str],
) -> LivePair:
    """One set of parameters for both models, and the base's value of those that differ."""
    import torch

    live: dict[str, nn.Parameter] = {}
    base: dict[str, Tensor] = {}
    tuned_state = dict(merged.model.named_parameters())
    to_dtype: torch.dtype = getattr(torch, dtype)
    name_of: dict[str, str] = {}

    def own(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=device, dtype=to_dtype)

    def add(name: str, parameter: nn.Parameter, before: Tensor | None, after: Tensor | None) -> None:
        parameter.requires_grad_(False)
        if after is None or (before is not None and torch.equal(before, after)):
            after = before
        assert after is not None
        parameter.data = after
        live[name] = parameter
        if before is not None and after is not before:
            base[name] = before

    if start.model is not None:
        name_of = _aligned(start.model, merged.model)
        _untie_what_parted(start.model, {name: tuned_state[tuned] for name, tuned in name_of.items()})
        for name, parameter in list(start.model.named_parameters()):
            after = own(tuned_state[name_of[name]]) if name in name_of else None
            add(name, parameter, own(parameter), after)
        start.model.to(device)
    if merged.is_classifier or start.model is None:
        shared = {tuned: name for name, tuned in name_of.items() if name in live}
        for name, parameter in tuned_state.items():
            if name in shared:
                _set_parameter(merged.model, name, live[shared[name]])
                continue
            before = merged.from_base.get(name)
            add(name, parameter, None if before is None else own(before), own(parameter))
        merged.model.to(device)
    language: LanguageModel | IntruscopeError
    if start.model is None:
        assert start.problem is not None
        language = start.problem
    else:
        limit = max_context(start.model, tokenizers[0])
        language = LanguageModel(
            model=start.model, tokenizer=tokenizers[0], kind=start.kind, max_context=limit
        )
    config: Any = (start.model or merged.model).config
    return LivePair(
        language=language,
        task=_task(merged, tokenizers[1]),
        live=live,
        base=base,
        places=_places(config, live, start.stored_names),
        description=description,
    )


def _untie_what_parted(model: nn.Module, tuned: Mapping[str, Tensor]) -> None:
    """Tied parameters stay one where the tuned model has one value for them, and part where it has two."""
    import torch

    first: dict[int, str] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        kept = first.setdefault(id(parameter), name)
        if kept != name and name in tuned and not torch.equal(tuned[name], tuned[kept]):
            _set_parameter(model, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _task(merged: Merged, tokenizer: Any) -> TaskModel | IntruscopeError:
    if not merged.is_classifier:
        return _NO_TASK
    if merged.random:
        return MalformedInput(
            f"got no {printable(min(merged.random))}, neither in the base nor in the tuned model, expected "
            "both together to hold the whole classifier",
            remedy="train with that module in modules_to_save (of a BERT base without pooler, that too)",
        )
    config: Any = merged.model.config
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return TaskModel(
        model=merged.model,
        tokenizer=tokenizer,
        labels=labels,
        max_context=max_context(merged.model, tokenizer),
    )


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent)._parameters[leaf] = parameter


def _aligned(model: nn.Module, tuned: nn.Module) -> dict[str, str]:
    """Language-model parameter to the tuned model's name for it; heads that only the base has are left out.

    Raises:
        MalformedInput: the tuned model lacks a part of the body.
    """
    tuned_names = {name for name, _ in tuned.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for candidate in (name, name.removeprefix(prefix)):
            if candidate in tuned_names:
                other = tuned.get_parameter(candidate)
                if other.shape != parameter.shape:
                    raise ShapeMismatch(
                        f"got the shape {list(other.shape)}, expected the base's {list(parameter.shape)}",
                        remedy="check that both are of one vocabulary and size",
                        tensor=name,
                    )
                found[name] = candidate
                break
        else:
            if name.startswith(prefix):
                raise MalformedInput(
                    "got a tuned model without this part of the body, expected all of it",
                    remedy="check that the tuned model was made from this base",
                    tensor=name,
                )
    return found


def _places(config: Any, live: Mapping[str, nn.Parameter], stored_names: Iterable[str]) -> dict[str, Place]:
    """Where the base's matrices and other tensors lie in the live model, by the names of a scan."""
    nowhere = Path("in memory")
    stamp = FileStamp(num_bytes=0, mtime_ns=0, inode=0)
    records = {
        name: StoredTensor(
            name=name, path=nowhere, dtype="F32", shape=tuple(p.shape), offset=0, num_bytes=0, stamp=stamp
        )
        for name, p in live.items()
    }
    source = ModelSource(
        name="live", path=nowhere, revision=None, config=config.to_dict(), tensors=records, inputs=()
    )
    matrices = base_matrices(source).matrices
    stored_names = list(stored_names)
    stored_prefix, live_prefix = find_prefixes(stored_names, live)
    known = {name.removeprefix(stored_prefix): name for name in stored_names}
    found: dict[str, Place] = {}
    for live_name in live:
        stored = known.get(live_name.removeprefix(live_prefix))
        if stored is None:
            continue
        for view in matrices.get(live_name, ()):
            part = view.name.removeprefix(live_name.removesuffix(".weight"))
            found[stored.removesuffix(".weight") + part] = Place(parameter=live_name, view=view)
        if live_name not in matrices:
            found[stored] = Place(parameter=live_name, view=None)
    return found
