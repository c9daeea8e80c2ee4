"""Guidance as a logits processor of transformers.

``generate`` runs the tuned model; the processor runs the base on the same tokens, with a cache of its own.

Import only where text is generated: this module brings transformers and torch.

Shape suffixes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
import weakref
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

from intruscope.adapters.in_memory import has_adapter, wrapper_layers
from intruscope.adapters.twins import base_beside
from intruscope.errors import ShapeMismatch, UnsupportedFormat, UsageError, printable
from intruscope.forgetting.guided import checked_gamma, mixed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

_CACHES = ("cache", "past_key_values")
"""What releases of transformers call a model's cache, the newest first."""
_KNOWN_INPUTS = {"input_ids", "attention_mask", "position_ids", "cache_position", "logits_to_keep", *_CACHES}


class AdapterGuidance(LogitsProcessor):  # type: ignore[misc]
    """Generates from log p = log p_base + gamma (log p_tuned - log p_base).

    Make a new one for each call of ``generate``, and pass it first::

        model.generate(**inputs, logits_processor=[AdapterGuidance(model, gamma=0.5)])

    With gamma 0 the output is that of the base, with gamma 1 that of the tuned model, token for token (greedy
    or with the same random state). Batches, left padding and several sequences per prompt work as they do in
    ``generate`` itself. It is not the model with its adapter scaled by gamma.

    Args:
        tuned: The causal language model that generates: a PeftModel, or any model of transformers.
        gamma: At least 0; above 1 it extrapolates.
        base: The base; by default the model inside the PeftModel, whose tensors are shared.
        plausibility: For gamma above 1, only tokens remain whose probability under the tuned model is at
            least this fraction of the most probable token's. Extrapolation would amplify the noise in the
            others. 0 keeps all.

    Raises:
        UsageError: a gamma or plausibility out of range; no base, or a base that is none (the adapter's
            initialisation moved it, its biases were trained, or the adapter is merged); and on use: beam
            search, a processor that ran before this one, a second call of ``generate``, or inputs that the
            base would not see.
        ShapeMismatch: base and tuned model have different vocabularies.
        UnsupportedFormat: not a causal language model; and on use, a static cache.
    """

    def __init__(
        self, tuned: Any, gamma: float, *, base: nn.Module | None = None, plausibility: float = 0.0
    ) -> None:
        self.gamma = checked_gamma(gamma)
        if not 0.0 <= plausibility <= 1.0:
            raise UsageError(
                f"plausibility is {plausibility:g}, but it must be between 0 and 1",
                remedy="use for example 0.1, or 0 to keep all tokens",
            )
        self.plausibility = plausibility
        inner = tuned.get_base_model() if has_adapter(tuned) else getattr(tuned, "_orig_mod", tuned)
        _check_causal(inner)
        self._base: Any = _base_of(tuned, inner, base)
        self._accepted = frozenset(inspect.signature(self._base.forward).parameters)
        self._cache_name = next((name for name in _CACHES if name in self._accepted), None)
        self._cache: Any = None
        self._fed_BT: Tensor | None = None
        self._latest: tuple[Mapping[str, Any], Tensor] | None = None
        self._watch(inner)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of the next token.

        Args:
            input_ids: All tokens so far, (B, T).
            scores: Logits of the tuned model, (B, V).

        Returns:
            Those of the base where gamma is 0, the given ones where it is 1, otherwise log-probabilities of
            the mixture up to a constant per row.
        """
        named = self._checked(input_ids, scores)
        if self.gamma == 1.0:
            self._fed_BT = input_ids
            return scores
        base_BV = self._base_logits(input_ids, named).to(scores)
        if base_BV.shape != scores.shape:
            raise _other_vocabulary(base_BV.shape[-1], scores.shape[-1])
        if self.gamma == 0.0:
            return base_BV
        tuned_BV = scores.log_softmax(-1)
        guided_BV = mixed(base_BV.log_softmax(-1), tuned_BV, self.gamma)
        if self.gamma > 1.0 and self.plausibility > 0.0:
            least_B1 = tuned_BV.amax(-1, keepdim=True) + math.log(self.plausibility)
            guided_BV = guided_BV.masked_fill(tuned_BV < least_B1, -math.inf)
        return guided_BV

    def _watch(self, model: nn.Module) -> None:
        """Note what ``generate`` passes to the model and gets from it, for as long as this object lives."""
        watching = weakref.ref(self)

        def note(_module: object, _arguments: object, named: Mapping[str, Any], output: Any) -> None:
            here = watching()
            if here is not None:
                here._latest = (named, output.logits[:, -1])

        handle = model.register_forward_hook(note, with_kwargs=True)
        weakref.finalize(self, handle.remove)

    def _checked(self, input_ids: Tensor, scores: Tensor) -> Mapping[str, Any]:
        """What the tuned model was given for these scores, if they and the tokens are what they should be.

        Raises:
            UsageError: they are not.
        """
        if self._latest is None:
            raise UsageError(
                "the model that generates is not the one that AdapterGuidance was made for",
                remedy="make it for the model whose generate is called",
            )
        (named, logits), self._latest = self._latest, None
        if not torch.equal(scores, logits.to(scores)):
            raise UsageError(
                "the scores were changed before guidance: by beam search, an assistant model, or an option "
                "such as repetition_penalty",
                remedy="use num_beams=1 without an assistant, and pass other processors in logits_processor, "
                "after AdapterGuidance",
            )
        fed = self._fed_BT
        if input_ids.shape[1] == 0 or (
            fed is not None
            and (
                input_ids.shape[1] != fed.shape[1] + 1
                or not torch.equal(input_ids[:, :-1], fed.to(input_ids.device))
            )
        ):
            raise UsageError(
                "the tokens do not continue those of the step before"
                if fed is not None
                else "generate was given embeddings in place of tokens, which the base cannot be given",
                remedy="make a new AdapterGuidance for each call of generate, and pass input_ids",
            )
        unseen = sorted(
            name for name, value in named.items() if name not in _KNOWN_INPUTS and torch.is_tensor(value)
        )
        if unseen:
            raise UsageError(
                f"the model is given {printable(unseen[0])}, which guidance does not pass on to the base",
                remedy="generate from text alone",
            )
        return named

    def _base_logits(self, input_ids: Tensor, named: Mapping[str, Any]) -> Tensor:
        """Logits of the base for the next token, from the tokens that it has not seen: (B, V).

        Raises:
            UnsupportedFormat: a static cache, with which there is no mask of the tokens so far.
        """
        num_seen = 0 if self._cache is None or self._fed_BT is None else self._fed_BT.shape[1]
        fresh = input_ids[:, num_seen:]
        mask = named.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(input_ids)
        if not torch.is_tensor(mask) or mask.shape != input_ids.shape:
            raise UnsupportedFormat(
                "guidance needs the attention mask, which generate does not pass on with a static cache",
                remedy="leave cache_implementation out",
            )
        inputs = {"input_ids": fresh, "attention_mask": mask}
        positions = named.get("position_ids")
        if torch.is_tensor(positions) and "position_ids" in self._accepted:
            if positions.shape[-1] != fresh.shape[1]:  # the tuned model's cache held more than the base's
                positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)[:, num_seen:]
            inputs["position_ids"] = positions
        device = getattr(self._base, "device", input_ids.device)
        given: dict[str, Any] = {name: tensor.to(device) for name, tensor in inputs.items()}
        if self._cache_name is not None:
            given |= {self._cache_name: self._cache, "use_cache": True}
        if "logits_to_keep" in self._accepted:
            given["logits_to_keep"] = 1
        with torch.no_grad():
            output = self._base(**given)
        if self._cache_name is not None:
            self._cache = getattr(output, self._cache_name)
        self._fed_BT = input_ids
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def _check_causal(model: Any) -> None:
    """Refuse a model that does not continue text.

    Raises:
        UnsupportedFormat: it does not.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) or not (
        hasattr(model, "can_generate") and model.can_generate()
    ):
        raise UnsupportedFormat(
            f"a {type(model).__name__} does not generate text from left to right",
            remedy="use a causal language model; intruscope forget --gamma measures guidance for others",
        )


def _base_of(tuned: Any, inner: Any, base: Any) -> nn.Module:
    """The base as a module of its own.

    Raises:
        UsageError: there is none.
        ShapeMismatch: it has another vocabulary.
    """
    if base is None or base is inner:
        if not has_adapter(tuned):
            raise UsageError(
                f"the {type(inner).__name__} has no adapter, so its base is unknown",
                remedy="pass the base as well: AdapterGuidance(tuned, gamma, base=base)",
            )
        return base_beside(tuned)
    if has_adapter(base) or wrapper_layers(base):
        raise UsageError(
            "the base carries an adapter; it must be a model alone",
            remedy="load the base again as a model of its own",
        )
    sizes = [getattr(each.config.get_text_config(), "vocab_size", None) for each in (base, inner)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise _other_vocabulary(*sizes)
    module: nn.Module = base
    return module


def _other_vocabulary(base_words: int | None, words: int | None) -> ShapeMismatch:
    return ShapeMismatch(
        f"the vocabulary has {words} tokens in the tuned model and {base_words} in the base: what the base "
        "lacks has no probability under it",
        remedy=f"call resize_token_embeddings({base_words}) on the tuned model",
    )
