"""A live causal model answers prompts: greedily, or sampled with random numbers of their own.

Prompts run in batches, padded on the left. An answer depends only on its prompt, never on what else was in
its batch: each sampled answer draws from a generator that is seeded with its prompt and its number.

Shape suffixes: B rows of a batch, V words.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.adapters.live_models import quiet
from intruscope.errors import MalformedInput, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from intruscope.adapters.live import LanguageModel
    from intruscope.knowledge.settings import KnowledgeSettings

_TOLERANCE = 64
"""Rounding errors, in units of the data type's epsilon, that padding may add to a logit."""


class Answerer:
    """Answers prompts with a live model in its present state.

    Args:
        language: A causal language model.
        settings: Seed, temperature and size of batches.
        max_answer_tokens: Maximum length of an answer.
        is_chat: Prompts are rendered by a chat template, which has written all special tokens already.
    """

    def __init__(
        self, language: LanguageModel, settings: KnowledgeSettings, *, max_answer_tokens: int, is_chat: bool
    ) -> None:
        self._model: Any = language.model
        self._tokenizer = language.tokenizer
        self._settings = settings
        self._max_answer_tokens = max_answer_tokens
        self._is_chat = is_chat
        self._ends = _end_ids(language)
        self._pads: bool | None = None

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, as they begin; an end token that the tokenizer appends is left out."""
        encoded = self._tokenizer(list(prompts), add_special_tokens=not self._is_chat, verbose=False)
        found: list[list[int]] = [list(ids) for ids in encoded["input_ids"]]
        end = self._tokenizer.eos_token_id
        return [ids[:-1] if not self._is_chat and len(ids) > 1 and ids[-1] == end else ids for ids in found]

    def greedy(self, prompts: Sequence[str]) -> list[str]:
        """The most likely answer, token by token, to each prompt.

        Raises:
            MalformedInput: a logit is NaN.
            ResourceExhausted: a batch does not fit on the device.
        """
        distinct = list(dict.fromkeys(prompts))  # with few facts, several draws can be the same
        answers = self._answers(self.encode(distinct), None)
        found = dict(zip(distinct, answers, strict=True))
        return [found[prompt] for prompt in prompts]

    def sampled(self, groups: Sequence[Sequence[str]], num_samples: int) -> list[list[str]]:
        """Sampled answers to the prompts of each fact, ``num_samples`` per prompt.

        Raises:
            MalformedInput: a logit is NaN.
            ResourceExhausted: a batch does not fit on the device.
        """
        rows, draws = [], []
        for prompts in groups:
            for place, (prompt, ids) in enumerate(zip(prompts, self.encode(prompts), strict=True)):
                rows += [ids] * num_samples
                draws += [self._uniforms(prompt, place, number) for number in range(num_samples)]
        answers = iter(self._answers(rows, draws))
        return [[next(answers) for _ in range(num_samples * len(prompts))] for prompts in groups]

    def _uniforms(self, prompt: str, place: int, number: int) -> NDArray[np.float64]:
        """Random numbers of one sampled answer; several prompts of a fact may be the same."""
        digest = int.from_bytes(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:8])
        generator = np.random.default_rng([self._settings.seed, digest, place, number])
        return generator.random(self._max_answer_tokens)

    def _answers(self, rows: list[list[int]], draws: list[NDArray[np.float64]] | None) -> list[str]:
        """Answers to token ids, in order; greedy ones without draws."""
        found = [""] * len(rows)
        with quiet():
            for batch in self._batches(rows):
                chosen = None if draws is None else np.stack([draws[place] for place in batch])
                for place, text in zip(batch, self._generate([rows[p] for p in batch], chosen), strict=True):
                    found[place] = text
        return found

    def _batches(self, rows: list[list[int]]) -> Iterator[list[int]]:
        """Places of rows that run together, longest first: memory runs out at once or never."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
        if self._pads is None and order and len(rows[order[0]]) > len(rows[order[-1]]):
            self._pads = self._may_pad(rows[order[0]], rows[order[-1]])
        batch: list[int] = []
        for place in order:
            if batch:
                longest = len(rows[batch[0]])
                full = (len(batch) + 1) * (longest + self._max_answer_tokens) > self._settings.batch_tokens
                if full or (not self._pads and len(rows[place]) < longest):
                    yield batch
                    batch = []
            batch.append(place)
        if batch:
            yield batch

    def _may_pad(self, longer: list[int], shorter: list[int]) -> bool:
        """Whether padding on the left changes nothing; it does where a model gets its positions wrong."""
        import torch

        alone_V = self._first_logits([shorter])[0]
        padded_V = self._first_logits([longer, shorter])[1]
        bound = _TOLERANCE * torch.finfo(self._model.dtype).eps * alone_V.abs().max().clamp(min=1.0)
        return bool((alone_V - padded_V).abs().max() <= bound)

    def _first_logits(self, rows: list[list[int]]) -> torch.Tensor:
        """(B, V): the logits of the first token of each answer."""
        done = self._run(rows, 1, output_logits=True, return_dict_in_generate=True)
        logits_BV: torch.Tensor = done.logits[0].float()
        return logits_BV

    def _generate(self, rows: list[list[int]], uniforms: NDArray[np.float64] | None) -> list[str]:
        """The answers of one batch: the first line of what the model writes."""
        start = max(map(len, rows))
        choose = _Choose(start, uniforms, self._settings.temperature)
        try:
            ids_BT = self._run(
                rows,
                self._max_answer_tokens,
                logits_processor=[choose],
                stopping_criteria=[_EndOfLine(self._tokenizer, start)],
            )
        except MemoryError as error:
            raise self._no_memory(rows) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            raise self._no_memory(rows) from error
        return [self._text(row[start:]) for row in ids_BT.tolist()]

    def _no_memory(self, rows: list[list[int]]) -> ResourceExhausted:
        return ResourceExhausted(
            f"not enough memory on {self._model.device} for a batch of {len(rows)} prompts",
            remedy="lower --batch-tokens, or choose another --device",
        )

    def _text(self, ids: list[int]) -> str:
        end = next((place for place, each in enumerate(ids) if each in self._ends), len(ids))
        text = _decoded(self._tokenizer, [ids[:end]])[0].strip()
        return text.splitlines()[0].strip() if text else ""

    def _run(self, rows: list[list[int]], num_tokens: int, **options: Any) -> Any:
        """``generate`` with nothing of the model's own generation settings, such as a repetition penalty."""
        import torch
        from transformers import GenerationConfig

        padding = next((i for i in (self._tokenizer.pad_token_id, *sorted(self._ends)) if i is not None), 0)
        config = GenerationConfig(
            max_new_tokens=num_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=padding,
        )
        longest = max(map(len, rows))
        num_words = self._model.get_input_embeddings().num_embeddings
        filler = padding if padding < num_words else 0
        ids = torch.tensor([[filler] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        device = self._model.device
        with torch.inference_mode(), _generation_config(self._model, config):
            return self._model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config, **options
            )


def _end_ids(language: LanguageModel) -> frozenset[int]:
    """Tokens that end an answer: the model's end tokens, and every special token."""
    own = getattr(language.model.generation_config, "eos_token_id", None)
    ends = [own] if isinstance(own, int) else list(own or ())
    return frozenset((*ends, *language.tokenizer.all_special_ids))


def _decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    found: list[str] = tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return found


@contextmanager
def _generation_config(model: Any, config: Any) -> Iterator[None]:
    """In this context a model's default settings for generation are these."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


class _Choose:
    """Checks logits; given random numbers, it leaves one word to choose, drawn from their distribution."""

    def __init__(self, start: int, uniforms: NDArray[np.float64] | None, temperature: float) -> None:
        self._start = start
        self._uniforms = uniforms
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, V) scores to choose the largest of.

        Raises:
            MalformedInput: one is NaN.
        """
        import torch

        if bool(torch.isnan(scores).any()):
            raise MalformedInput(
                "the model returned NaN",
                remedy="look for non-finite weights with intruscope scan; with float16, try --dtype float32",
            )
        if self._uniforms is None:
            return scores
        wide_BV = (scores.cpu() if scores.device.type == "mps" else scores).double()
        cumulated_BV = (wide_BV / self._temperature).softmax(-1).cumsum(-1)
        step = input_ids.shape[1] - self._start
        drawn_B1 = torch.from_numpy(self._uniforms[:, step : step + 1]).to(cumulated_BV.device)
        chosen_B1 = torch.searchsorted(cumulated_BV, drawn_B1 * cumulated_BV[:, -1:], right=True)
        only_BV = torch.full_like(scores, -torch.inf)
        return only_BV.scatter_(1, chosen_B1.clamp(max=scores.shape[1] - 1).to(scores.device), 0.0)


class _EndOfLine:
    """Ends an answer after its first line."""

    def __init__(self, tokenizer: Any, start: int) -> None:
        self._tokenizer = tokenizer
        self._start = start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        """(B,): which answers are complete."""
        import torch

        texts = _decoded(self._tokenizer, input_ids[:, self._start :].tolist())
        done = ["\n" in text.lstrip() for text in texts]
        return torch.tensor(done, device=input_ids.device)
