"""From a base and a merged fine-tune, two separate models, to one :class:`LivePair`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.adapters.live import LanguageModel, LivePair, MatrixPlace, TaskModel
from intruscope.adapters.live_models import max_context
from intruscope.errors import IntruscopeError, MalformedInput, ShapeMismatch, UsageError, printable
from intruscope.weights.layout import base_matrices
from intruscope.weights.memory import memory_source
from intruscope.weights.prefixes import find_prefixes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import Tensor, nn

    from intruscope.adapters.live_merge import Merged
    from intruscope.adapters.live_models import LanguageKind

_NO_TASK = UsageError(
    "the tuned model has no classification head",
    remedy="give a task of multiple choice or held-out text, or a model that classifies sequences",
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The base as a language model, or the reason why it is not one.

    Attributes:
        model: None without a language-model head.
        cls: Its class; None when transformers has none for the model type.
        kind: ``causal`` or ``masked``.
        problem: Why there is no language model; None where there is one.
        stored_names: Names of its tensors as stored.
    """

    model: nn.Module | None
    cls: type[nn.Module] | None
    kind: LanguageKind
    problem: IntruscopeError | None
    stored_names: tuple[str, ...]


def assemble(
    start: Start,
    merged: Merged,
    tokenizers: tuple[Any, Any],
    *,
    dtype: str,
    device: str,
    description: tuple[str, str],
) -> LivePair:
    """One set of parameters for both models, and the base's values of those that differ."""
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
        tuned_of = {name: tuned_state[tuned] for name, tuned in name_of.items()}
        _untie_what_parted(start.model, tuned_of, keeps_head=merged.head is not None)
        for name, parameter in list(start.model.named_parameters()):
            after = own(tuned_state[name_of[name]]) if name in name_of else None
            add(name, parameter, own(parameter), after)
        start.model.to(device)
    if merged.head is not None or start.model is None:
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
        choices=_choices(merged, tokenizers[1]),
        live=live,
        base=base,
        places=_places(config, live, start.stored_names),
        description=description,
    )


def _untie_what_parted(model: nn.Module, tuned: Mapping[str, Tensor], *, keeps_head: bool) -> None:
    """Untie tied parameters for which the tuned model has two values.

    A classifier has no value for a language model's head. The head keeps the base's value, even where it is
    tied to an embedding that was trained.
    """
    import torch

    first: dict[int, str] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        kept = first.setdefault(id(parameter), name)
        if kept == name or kept not in tuned:
            continue
        other = tuned.get(name, parameter if keeps_head else tuned[kept])
        # In memory, the two models may be on two devices.
        if not torch.equal(other.to(tuned[kept].device), tuned[kept]):
            _set_parameter(model, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))
            # Other libraries call tie_weights on what they are given (lm-evaluation-harness does).
            config: Any = model.config
            config.tie_word_embeddings = False


def _task(merged: Merged, tokenizer: Any) -> TaskModel | IntruscopeError:
    if merged.head != "classes":
        return _NO_TASK
    if merged.random:
        return _lost(merged)
    config: Any = merged.model.config
    if config.num_labels < 2 or getattr(config, "problem_type", None) == "multi_label_classification":
        return UsageError(
            f"the tuned model has a head of {config.num_labels} outputs for "
            f"{config.problem_type or 'regression'}, not for one class per text",
            remedy="leave the task out: only forgetting can be measured",
        )
    if getattr(config, "pad_token_id", None) is None:  # causal classifiers use it to find the last token
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        config.pad_token_id = next((i for i in known if i is not None and i < config.vocab_size), 0)
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return TaskModel(
        model=merged.model,
        tokenizer=tokenizer,
        labels=labels,
        max_context=max_context(merged.model, tokenizer),
    )


def _choices(merged: Merged, tokenizer: Any) -> TaskModel | IntruscopeError | None:
    if merged.head != "choices":
        return None
    if merged.random:
        return _lost(merged)
    return TaskModel(
        model=merged.model,
        tokenizer=tokenizer,
        labels=(),
        max_context=max_context(merged.model, tokenizer),
    )


def _lost(merged: Merged) -> MalformedInput:
    return MalformedInput(
        f"{printable(min(merged.random))} of the head is neither in the base nor in the tuned model",
        remedy="train with that module in modules_to_save (and the pooler, for a BERT base without one)",
    )


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent)._parameters[leaf] = parameter


def _aligned(model: nn.Module, tuned: nn.Module) -> dict[str, str]:
    """The tuned model's name for each parameter of the language model, without heads that only the base has.

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
                        f"the shape is {list(other.shape)} in the tuned model and {list(parameter.shape)} in "
                        "the base",
                        remedy="check that both models have the same vocabulary and size",
                        tensor=name,
                    )
                found[name] = candidate
                break
        else:
            if name.startswith(prefix):
                raise MalformedInput(
                    "the tuned model lacks this part of the base",
                    remedy="check that the tuned model was trained from this base",
                    tensor=name,
                )
    return found


def _places(
    config: Any, live: Mapping[str, nn.Parameter], stored_names: Iterable[str]
) -> dict[str, MatrixPlace]:
    """Where the base's matrices and other tensors are in the live model, by the names that a scan uses."""
    matrices = base_matrices(memory_source(live, config=config.to_dict(), name="live")).matrices
    stored_names = list(stored_names)
    stored_prefix, live_prefix = find_prefixes(stored_names, live)
    known = {name.removeprefix(stored_prefix): name for name in stored_names}
    found: dict[str, MatrixPlace] = {}
    for live_name in live:
        stored = known.get(live_name.removeprefix(live_prefix))
        if stored is None:
            continue
        for view in matrices.get(live_name, ()):
            part = view.name.removeprefix(live_name.removesuffix(".weight"))
            found[stored.removesuffix(".weight") + part] = MatrixPlace(parameter=live_name, view=view)
        if live_name not in matrices:
            found[stored] = MatrixPlace(parameter=live_name, view=None)
    return found
