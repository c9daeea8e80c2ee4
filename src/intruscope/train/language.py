"""The language model inside a model that is trained: the model itself, or its body under the base's head."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_loading import base_language
from intruscope.adapters.live_models import (
    LanguageKind,
    class_for,
    config_of,
    max_context,
    quiet,
    read_tensors,
)
from intruscope.errors import UsageError
from intruscope.weights.source import ModelSource, open_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn


def trained_language(
    model: nn.Module, tokenizer: Any, base: str | Path | ModelSource | None
) -> LanguageModel:
    """A model in training as one that losses on text are taken of.

    A language model is taken as it is. Of a classifier the body is taken, and its base's language-model head
    is put on it, as the paper does: its parameters are not trained. Both share the body's parameters, so that
    the result follows the training.

    Args:
        model: What is trained; a PeftModel or a transformers model.
        tokenizer: Of the model.
        base: Where a classifier's language-model head is from.

    Raises:
        UsageError: a classifier without ``base``, or with a body that does not fit.
        IntruscopeError: the base has no language-model head.
    """
    whole: Any = model
    inner = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    kind, language = _own_kind(inner), inner
    if kind is None:
        if base is None:
            raise UsageError(
                f"forgetting cannot be measured on a {type(inner).__name__}, because it has no "
                "language-model head",
                remedy="name the base, whose head is used: IntruderWatch(base=..., text=...)",
            )
        language, kind = load_language(base)
        language.requires_grad_(False)
        _share_body(language, inner)
    limit = max_context(inner, tokenizer)
    return LanguageModel(model=language, tokenizer=tokenizer, kind=kind, max_context=limit)


def load_language(base: str | Path | ModelSource) -> tuple[Any, LanguageKind]:
    """A base as a language model in float32 and evaluation mode, and its kind.

    Raises:
        IntruscopeError: it has no language-model head, or is damaged.
    """
    source = base if isinstance(base, ModelSource) else open_model(base)
    with quiet():
        start = base_language(source, config_of(source), read_tensors(source), torch.float32)
    if start.problem is not None:
        raise start.problem
    return start.model, start.kind


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode, and afterwards every module in the mode that it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _own_kind(inner: nn.Module) -> LanguageKind | None:
    """The kind of a language model; None for a model without such a head."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    config = inner.config
    if type(inner) is class_for(AutoModelForCausalLM, config):
        return "causal"
    return "masked" if type(inner) is class_for(AutoModelForMaskedLM, config) else None


def _share_body(language: Any, inner: Any) -> None:
    """Put the body that is trained under a language-model head, on its device and in its dtype."""
    body = getattr(inner, inner.base_model_prefix, None)
    if body is None or not hasattr(language, language.base_model_prefix):
        raise UsageError(
            f"the body of this {type(inner).__name__} does not fit into {type(language).__name__}",
            remedy="measure forgetting afterwards with intruscope forget",
        )
    language.to(device=next(inner.parameters()).device, dtype=inner.dtype)
    setattr(language, language.base_model_prefix, body)
