"""The loss of a model on a fixed small text while it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_models import (
    LanguageKind,
    class_for,
    language_class,
    max_context,
    quiet,
    without_kernels,
)
from intruscope.errors import MalformedInput, UsageError
from intruscope.forgetting.losses import choose_protocol, measure
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from intruscope.forgetting.losses import SequenceLosses

MAX_SEQUENCES = 64


class ForgettingProbe:
    """Nats per token of one text, again and again.

    A language model is measured as it is. Of a classifier the body is: its base's language-model head is put
    on it, as the paper does.

    Args:
        model: What is trained; a PeftModel or a transformers model.
        tokenizer: Of the model.
        text: Files, patterns or datasets, as ``forgetting.texts`` reads them.
        base: Where a classifier's language-model head is from; a name that transformers loads.
        max_sequences: Maximum number of sequences, sampled evenly over the text.

    Raises:
        UsageError: no tokenizer, or a classifier without ``base``.
        IntruscopeError: the text cannot be read, or there is no language model of this kind.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        text: Sequence[str | Path],
        base: str | Path | None,
        *,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        if tokenizer is None:
            raise UsageError(
                "the Trainer has no tokenizer, which is needed to measure forgetting on a text",
                remedy="pass processing_class=tokenizer to the Trainer",
            )
        whole: Any = model
        inner = whole.get_base_model() if hasattr(model, "get_base_model") else whole
        kind, language = _own_kind(inner), inner
        if kind is None:
            cls, kind = language_class(inner.config, file=type(inner).__name__)
            language = _grafted(inner, cls, base)
        self._trained = model
        self._language = LanguageModel(
            model=language, tokenizer=tokenizer, kind=kind, max_context=max_context(inner, tokenizer)
        )
        corpus = read_texts(text)
        self.sha256 = corpus.sha256
        self._sequences = cut(corpus, self._language, max_sequences=max_sequences)
        self._protocol = choose_protocol(kind, "fast" if kind == "masked" else None)

    def loss(self) -> float | None:
        """Nats per token now, None where that is no number."""
        try:
            return self.losses().nats_per_token
        except MalformedInput:  # a training that has come to NaN is the Trainer's to end
            return None

    def losses(self) -> SequenceLosses:
        """The losses of the sequences now; the model is left in the mode it was in.

        Raises:
            MalformedInput: one is no number.
        """
        modes = {module: module.training for module in self._trained.modules()}
        self._language.model.eval()
        try:
            return measure(self._language, self._sequences, protocol=self._protocol)
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


def _grafted(inner: Any, cls: type[nn.Module], base: str | Path | None) -> Any:
    """The base's language model around the body that is trained."""
    if base is None:
        raise UsageError(
            f"forgetting cannot be measured on a {type(inner).__name__}, which has no language-model head",
            remedy="name the base, whose head is used: IntruderWatch(base=..., text=...)",
        )
    with quiet():
        config = without_kernels(cls.config_class.from_pretrained(base))  # type: ignore[attr-defined]
        language: Any = cls.from_pretrained(base, config=config, dtype=inner.dtype)  # type: ignore[attr-defined]
    prefix = language.base_model_prefix
    body = getattr(inner, inner.base_model_prefix, None)
    if body is None or not hasattr(language, prefix):
        raise UsageError(
            f"the body of this {type(inner).__name__} does not fit into {cls.__name__}",
            remedy="leave text out, and measure forgetting afterwards with intruscope forget",
        )
    parameter: torch.nn.Parameter = next(inner.parameters())
    language.to(parameter.device)
    setattr(language, prefix, body)
    return language
