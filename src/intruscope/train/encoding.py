"""Tasks and text as token ids, by the loss that the loaded model is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_models import max_context
from intruscope.forgetting.tasks import ClassificationTask, TextTask
from intruscope.forgetting.windows import cut
from intruscope.train.data import Example, Examples, TrainingData, chosen

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.train.loading import Loaded

MASKED_SHARE = 0.15
"""Devlin et al. 2018, section 3.1."""


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
        MalformedInput: a label that is none of the model's classes.
        IntruscopeError: the tokenizer does not fit, or there is too little text.
    """
    limit = max_context(loaded.model, loaded.tokenizer)
    max_length = min(max_length, limit) if limit is not None else max_length
    if isinstance(data, ClassificationTask):
        return _classification(loaded, data, max_length, chosen(len(data.labels), at_most, seed))
    corpus = data.corpus if isinstance(data, TextTask) else data
    return _text(loaded, corpus, max_length, at_most, seed)  # type: ignore[arg-type]


def _classification(loaded: Loaded, task: ClassificationTask, max_length: int, indices: Any) -> TrainingData:
    from transformers import DataCollatorWithPadding

    tokenizer = loaded.tokenizer
    numbers = task.numbers(loaded.labels)
    rows: list[Example] = []
    num_cut = 0
    for index in indices:
        first, second = task.texts[index]
        encoded = dict(tokenizer(first, second, verbose=False))
        if len(encoded["input_ids"]) > max_length:
            encoded = dict(tokenizer(first, second, truncation=True, max_length=max_length))
            num_cut += 1
        rows.append({**encoded, "labels": numbers[index]})
    return TrainingData(examples=Examples(rows), collate=DataCollatorWithPadding(tokenizer), num_cut=num_cut)


def _text(loaded: Loaded, corpus: Corpus, max_length: int, at_most: int | None, seed: int) -> TrainingData:
    """Running text in windows of which each token is predicted once (causal), or lines (masked)."""
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    is_causal = loaded.kind == "causal"
    language = LanguageModel(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        kind="causal" if is_causal else "masked",
        max_context=max_context(loaded.model, loaded.tokenizer),
    )
    windows = cut(corpus, language, context=max_length, stride=max_length - 1 if is_causal else None).windows
    rows: list[Example] = []
    for index in chosen(len(windows), at_most, seed):
        ids = windows[index].ids.tolist()
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        rows.append({**row, "labels": ids} if is_causal else row)
    collate: Callable[[list[Example]], dict[str, Any]]
    if is_causal:
        collate = DataCollatorForSeq2Seq(loaded.tokenizer, label_pad_token_id=-100)
    else:
        collate = DataCollatorForLanguageModeling(loaded.tokenizer, mlm=True, mlm_probability=MASKED_SHARE)
    return TrainingData(examples=Examples(rows), collate=collate, num_cut=0)
