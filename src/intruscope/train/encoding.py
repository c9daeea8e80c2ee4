"""Tasks and text as token ids, by the loss that the loaded model is trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_models import max_context
from intruscope.errors import UsageError
from intruscope.forgetting.scores import encode_pair, ending_window
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, TextTask
from intruscope.forgetting.windows import cut
from intruscope.train.data import Example, Examples, TrainingData, chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.train.loading import Loaded

MASKED_SHARE = 0.15
"""Devlin et al. 2018, section 3.1."""
_MAX_KEPT = 256
_KEPT_BATCH = 8
_NO_TARGET = -100  # what transformers' losses leave out


def encode(
    loaded: Loaded, data: Task | Corpus, max_length: int, *, at_most: int | None = None, seed: int = 0
) -> TrainingData:
    """Encode what a loaded model is trained or scored on.

    Args:
        loaded: By :func:`intruscope.train.loading.load_for`, for data of this kind.
        data: A task, or text.
        max_length: Longest input in tokens; the model's own limit is kept as well.
        at_most: Take so many examples; all by default.
        seed: Of which are taken.

    Raises:
        MalformedInput: a label that is none of the model's classes, or an ending without a token.
        UsageError: multiple choice of more than one number of choices, for a model that scores each.
        IntruscopeError: the tokenizer does not fit, or there is too little text.
    """
    limit = max_context(loaded.model, loaded.tokenizer)
    max_length = min(max_length, limit) if limit is not None else max_length
    if isinstance(data, ClassificationTask):
        return _classification(loaded, data, max_length, chosen(len(data.labels), at_most, seed))
    if isinstance(data, ChoiceTask):
        indices = chosen(len(data.choices), at_most, seed)
        by_head = loaded.kind == "choices"
        return (_choices if by_head else _endings)(loaded, data, max_length, indices)
    corpus = data.corpus if isinstance(data, TextTask) else data
    return _text(loaded, corpus, max_length, at_most, seed)


def kept_batches(loaded: Loaded, corpus: Corpus, max_length: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Text to keep, as the model takes it: up to 256 inputs, as many as CorDA's and LoRA-Null's papers take.

    Args:
        loaded: By :func:`intruscope.train.loading.load_for`, for data of any kind.
        corpus: The text.
        max_length: Longest input in tokens; the model's own limit is kept as well.
        seed: Random seed of which are taken.

    Raises:
        IntruscopeError: the tokenizer does not fit, or there is too little text.
    """
    from transformers import DataCollatorWithPadding

    is_causal = loaded.kind in ("causal", "endings")
    language = replace(as_language(loaded, max_length), kind="causal" if is_causal else "masked")
    limit = language.max_context
    assert limit is not None
    windows = cut(corpus, language, context=limit, stride=limit - 1 if is_causal else None).windows
    taken = [windows[index].ids.tolist() for index in chosen(len(windows), _MAX_KEPT, seed)]
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in taken]
    collate = DataCollatorWithPadding(loaded.tokenizer)
    return [dict(collate(rows[first : first + _KEPT_BATCH])) for first in range(0, len(rows), _KEPT_BATCH)]


def _classification(
    loaded: Loaded, task: ClassificationTask, max_length: int, indices: Sequence[int]
) -> TrainingData:
    from transformers import DataCollatorWithPadding

    tokenizer = loaded.tokenizer
    numbers = task.numbers(loaded.labels)
    rows: list[Example] = []
    num_cut = 0
    for index in indices:
        first, second = task.texts[index]
        encoded, was_cut = encode_pair(tokenizer, first, second, max_length)
        num_cut += was_cut
        rows.append({**encoded, "labels": numbers[index]})
    return TrainingData(examples=Examples(rows), collate=DataCollatorWithPadding(tokenizer), num_cut=num_cut)


def _choices(loaded: Loaded, task: ChoiceTask, max_length: int, indices: Sequence[int]) -> TrainingData:
    """Each ending beside its prompt, as many as there are choices; the loss is over their scores."""
    from transformers import DataCollatorForMultipleChoice

    counts = sorted({len(choice.endings) for choice in task.choices})
    if len(counts) > 1:
        raise UsageError(
            f"the examples have between {counts[0]} and {counts[-1]} choices, and this model needs the same "
            "number "
            "everywhere because it scores all choices of a batch together",
            remedy="remove the examples that differ, or train a causal language model",
            file=task.name,
        )
    rows: list[Example] = []
    num_cut = 0
    for index in indices:
        choice = task.choices[index]
        pairs = [
            encode_pair(loaded.tokenizer, prompt, ending, max_length)
            for prompt, ending in zip(choice.prompts, choice.endings, strict=True)
        ]
        num_cut += any(was_cut for _, was_cut in pairs)
        row: Example = {key: [encoded[key] for encoded, _ in pairs] for key in pairs[0][0]}
        rows.append({**row, "labels": choice.answer})
    collate = DataCollatorForMultipleChoice(loaded.tokenizer)
    return TrainingData(examples=Examples(rows), collate=collate, num_cut=num_cut)


def _endings(loaded: Loaded, task: ChoiceTask, max_length: int, indices: Sequence[int]) -> TrainingData:
    """The right ending after its prompt; the loss is over the ending's tokens alone."""
    from transformers import DataCollatorForSeq2Seq

    language = as_language(loaded, max_length)
    rows: list[Example] = []
    num_cut = 0
    for index in indices:
        choice = task.choices[index]
        prompt, ending = choice.prompts[choice.answer], choice.endings[choice.answer]
        window, was_cut = ending_window(language, prompt, ending, 0, task.name)
        num_cut += was_cut
        labels = np.full_like(window.ids, _NO_TARGET)
        labels[window.scored] = window.ids[window.scored]
        ids = window.ids.tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels.tolist()})
    collate = DataCollatorForSeq2Seq(loaded.tokenizer, label_pad_token_id=_NO_TARGET)
    return TrainingData(examples=Examples(rows), collate=collate, num_cut=num_cut)


def as_language(loaded: Loaded, max_length: int | None = None) -> LanguageModel:
    """A loaded language model as one that losses are taken of, its inputs no longer than a limit."""
    limits = [each for each in (max_length, max_context(loaded.model, loaded.tokenizer)) if each is not None]
    return LanguageModel(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        kind="masked" if loaded.kind == "masked" else "causal",
        max_context=min(limits) if limits else None,
    )


def _text(loaded: Loaded, corpus: Corpus, max_length: int, at_most: int | None, seed: int) -> TrainingData:
    """Running text in windows of which each token is predicted once (causal), or lines (masked)."""
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    is_causal = loaded.kind == "causal"
    stride = max_length - 1 if is_causal else None
    windows = cut(corpus, as_language(loaded), context=max_length, stride=stride).windows
    rows: list[Example] = []
    for index in chosen(len(windows), at_most, seed):
        ids = windows[index].ids.tolist()
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        rows.append({**row, "labels": ids} if is_causal else row)
    collate: Callable[[list[Example]], dict[str, Any]]
    if is_causal:
        collate = DataCollatorForSeq2Seq(loaded.tokenizer, label_pad_token_id=_NO_TARGET)
    else:
        collate = DataCollatorForLanguageModeling(loaded.tokenizer, mlm=True, mlm_probability=MASKED_SHARE)
    return TrainingData(examples=Examples(rows), collate=collate, num_cut=0)
