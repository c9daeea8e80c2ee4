"""Generation with guidance: every prompt at every gamma, side by side."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from intruscope.engine.environment import environment
from intruscope.errors import MalformedInput, UnsupportedFormat, UsageError, printable
from intruscope.forgetting.guided import checked_gamma
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import special_ids
from intruscope.guidance.records import Completion, GuideReport
from intruscope.guidance.settings import GuideSettings
from intruscope.options import check_options
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from intruscope.adapters.live import LanguageModel
    from intruscope.adapters.opening import ModelLike, OpenedPair

_BATCH = 8
"""Prompts that are continued together."""


def guide(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    prompts: Sequence[str],
    allow_pickle: bool = False,
    on_progress: OnProgress = ignore_progress,
    **settings: Any,
) -> GuideReport:
    """Continue prompts with adapter guidance, at several strengths: base and tuned model predict together.

    The next token is drawn from log p = log p_base + gamma (log p_tuned - log p_base). No weight is changed.

    Args:
        base: The base model: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory.
        tuned: The tuned model: a full checkpoint, an adapter, or a model or PeftModel in memory. Models in
            memory are copied and left as they are.
        prompts: At least one. Where the tokenizer has a chat template, each is a user's message.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called after each batch of prompts.
        **settings: Fields of :class:`~intruscope.guidance.GuideSettings`. Two sampled runs with one seed are
            equal if they have the same prompts.

    Raises:
        UnsupportedFormat: the models are no causal language models.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    from intruscope.adapters.opening import open_pair

    asked = _checked(GuideSettings(**settings), prompts)
    opened = open_pair(base, tuned, allow_pickle=allow_pickle)
    pair = load_pair(opened, device=asked.device, dtype=asked.dtype, tokenizer=asked.tokenizer)
    language = pair.language_model()
    if language.kind != "causal":
        raise UnsupportedFormat(
            "the model is a masked language model, which cannot continue a text",
            remedy="use a causal language model; intruscope forget --gamma measures guidance for this one",
        )
    template = None if asked.plain else _chat_tokenizer(opened, language)
    encoded = [_encode(prompt, language, template, asked.max_tokens) for prompt in prompts]
    generator = _Generator(language, pair.base_language_model().model, asked, template)
    found: dict[tuple[int, float], Completion] = {}
    num_all = len(prompts) * len(asked.gammas)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    for gamma in asked.gammas:
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            completions = generator.complete([encoded[index] for index in batch], gamma)
            for index, (tokens, ended) in zip(batch, completions, strict=True):
                text = language.tokenizer.decode(tokens, skip_special_tokens=True)
                found[index, gamma] = Completion(
                    prompt=index, gamma=gamma, text=text, tokens=tuple(tokens), ended=ended
                )
            on_progress(Progress(stage="generating", done=len(found), total=num_all, unit="texts"))
    return GuideReport(
        base=pair.description[0],
        tuned=pair.description[1],
        settings=asked,
        is_chat=template is not None,
        prompts=tuple(prompts),
        completions=tuple(found[index, gamma] for index in range(len(prompts)) for gamma in asked.gammas),
        environment=environment(("torch", "transformers", "tokenizers", "peft")),
    )


def read_prompts(path: str | Path, *, field: str | None = None) -> tuple[str, ...]:
    """The prompts of a file: the lines of a text, or the rows of a table.

    Args:
        path: The file.
        field: Column that holds the prompts, in tables.

    Raises:
        UsageError, MalformedInput: there is no such file, or no text in it.
    """
    documents = read_texts([path], field=field).documents
    rows = (
        [document.text] if document.is_row else re.split("\r\n|\n|\r", document.text)
        for document in documents
    )
    return tuple(row for found in rows for row in found if row.strip())


def _checked(settings: GuideSettings, prompts: Sequence[str]) -> GuideSettings:
    """The same settings, if they and the prompts can be used.

    Raises:
        UsageError: no prompts, no gammas or one twice, or a setting out of range.
    """
    if isinstance(prompts, str) or not prompts:
        raise UsageError(
            "no prompts given", remedy="pass --prompt TEXT or --prompts FILE (in Python, a list)"
        )
    gammas = tuple(map(checked_gamma, settings.gammas))
    if not gammas or len(set(gammas)) != len(gammas):
        raise UsageError("gamma is empty or has a value twice", remedy="give each gamma once, as in 0,0.5,1")
    check_options(settings)
    return replace(settings, gammas=gammas)


def _chat_tokenizer(opened: OpenedPair, language: LanguageModel) -> Any | None:
    """The tokenizer whose chat template the prompts go into: the tuned model's or else the base's."""
    from intruscope.adapters.live_loading import tokenizer_folder
    from intruscope.adapters.live_tokenizers import open_tokenizer

    found = [language.tokenizer]
    if opened.tuned_module is None:
        own = open_tokenizer(tokenizer_folder(opened.tuned))
        found = [each for each in (own, language.tokenizer) if each is not None]
    return next((each for each in found if getattr(each, "chat_template", None)), None)


def _encode(prompt: str, language: LanguageModel, template: Any | None, max_tokens: int) -> list[int]:
    """The token ids of a prompt.

    Raises:
        UsageError: there are none, or the model has no room for them and what should follow.
        MalformedInput: the chat template cannot be filled in.
    """
    before, _ = special_ids(language.tokenizer)
    if template is not None:
        try:
            message = [{"role": "user", "content": prompt}]
            prompt = template.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise anything
            raise MalformedInput(
                f"the chat template cannot be filled in ({printable(error)})",
                remedy="correct it, or pass --plain to do without it",
            ) from error
        before = []  # a template writes them itself
    ids = [*before, *language.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]]
    limit = language.max_context
    if not ids:
        raise UsageError("a prompt is empty", remedy="give each prompt some text")
    if limit is not None and len(ids) + max_tokens > limit:
        raise UsageError(
            f"a prompt has {len(ids)} tokens, which leaves no room for {max_tokens} new ones: the model's "
            f"longest input is {limit}",
            remedy="lower --max-tokens, or shorten the prompt",
        )
    return ids


class _Generator:
    """Continues batches of prompts with a pair of models."""

    def __init__(
        self, language: LanguageModel, base: Any, settings: GuideSettings, template: Any | None
    ) -> None:
        from transformers import GenerationConfig

        self._model: Any = language.model
        self._base = base
        self._settings = settings
        ends = {language.tokenizer.eos_token_id, getattr(template, "eos_token_id", None)}
        own = self._model.config.eos_token_id
        ends |= set(own) if isinstance(own, list) else {own}
        self._ends = sorted(end for end in ends if end is not None)
        num_words = self._model.get_input_embeddings().num_embeddings
        padding = language.tokenizer.pad_token_id
        # Padding is never attended to: any token will do where a model has none of its own.
        self._padding = padding if padding is not None and padding < num_words else 0
        # The model is a copy of ours: options that its makers recommend would be applied before guidance.
        self._model.generation_config = GenerationConfig()
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        self._config = GenerationConfig(
            max_new_tokens=settings.max_tokens,
            do_sample=settings.sample,
            num_beams=1,
            eos_token_id=self._ends or None,
            pad_token_id=self._padding,
            **(sampling if settings.sample else {}),
        )

    def complete(self, prompts: Sequence[list[int]], gamma: float) -> list[tuple[list[int], bool]]:
        """The new tokens after each prompt, and whether the model ended them itself."""
        import torch

        from intruscope.adapters.live_models import quiet
        from intruscope.guidance.processor import AdapterGuidance

        device = self._model.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[self._padding] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        guidance = AdapterGuidance(
            self._model, gamma, base=self._base, plausibility=self._settings.plausibility
        )
        with quiet(), _seeded(self._settings.seed, device):
            output = self._model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config,
                logits_processor=[guidance],
            )
        return [self._cut(row) for row in output[:, longest:]]

    def _cut(self, tokens: Tensor) -> tuple[list[int], bool]:
        found = tokens.tolist()
        end = next((place for place, token in enumerate(found) if token in self._ends), None)
        return (found, False) if end is None else (found[:end], True)


@contextmanager
def _seeded(seed: int, device: Any) -> Iterator[None]:
    """The random state of a seed; afterwards the caller's is as it was."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
