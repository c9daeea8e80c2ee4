"""The losses that a fit lowers: those that a sweep measures, with gradients and on a few items at a time.

Shape suffixes: B batch, C classes or choices, M scored tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from intruscope.forgetting.losses import Forward, Row, rows_of
from intruscope.forgetting.scores import encoded_texts, ending_window, padded_batch
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask
from intruscope.forgetting.windows import cut, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from intruscope.adapters.live import LanguageModel, LivePair, TaskModel
    from intruscope.fitting.settings import General
    from intruscope.forgetting.settings import Protocol
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.forgetting.windows import Sequences

FIT_CONTEXT = 128
"""Longest window of text in a fit, in tokens."""


class Items(ABC):
    """Examples or windows of text, and the loss of a model on any of them."""

    @property
    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """Token positions that each item takes."""

    @property
    def owners(self) -> Sequence[int]:
        """The sequence or example that each item is a part of."""
        return range(len(self.sizes))

    @abstractmethod
    def nats(self, chosen: Sequence[int]) -> tuple[Tensor, int]:
        """The summed loss of some items in nats, with gradients, and what to divide it by for a mean.

        Args:
            chosen: Indices of items.

        Raises:
            ResourceExhausted: they do not fit on the device.
        """

    def limited(self, max_positions: int) -> list[int]:
        """Indices of items spread evenly over all of them, as many as fit into the positions."""
        total, num = sum(self.sizes), len(self.sizes)
        count = min(num, max(1, num * max_positions // total))
        return [int(index) for index in spread(num, count)]


class TextItems(Items):
    """Windows of text under a language model: the loss of the text.

    Args:
        language: The model.
        sequences: The text.
        protocol: ``causal``, or ``fast`` for a masked model.
        seed: Random seed of the masks.
    """

    def __init__(
        self, language: LanguageModel, sequences: Sequences, *, protocol: Protocol, seed: int
    ) -> None:
        self._rows = rows_of(sequences.windows, protocol, seed)
        self._forward = Forward(language, masked=protocol != "causal")

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of each window."""
        return [len(row) for row in self._rows]

    @property
    def owners(self) -> Sequence[int]:
        """The sequence of each window."""
        return [row.window.sequence for row in self._rows]

    def nats(self, chosen: Sequence[int]) -> tuple[Tensor, int]:
        """Cross-entropy, summed over the scored tokens."""
        from torch.nn.functional import cross_entropy

        logits_MV, targets_M = self._forward.logits(self._batch(chosen))
        return cross_entropy(logits_MV, targets_M, reduction="sum"), len(targets_M)

    def _batch(self, chosen: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in chosen]


class BaseItems(TextItems):
    """The same windows, with the distance KL(base ‖ model) of the predictions as the loss.

    Args:
        pair: The pair, whose base the predictions come from.
        sequences: The text.
        protocol: As for :class:`TextItems`.
        seed: Likewise.
    """

    def __init__(self, pair: LivePair, sequences: Sequences, *, protocol: Protocol, seed: int) -> None:
        super().__init__(pair.language_model(), sequences, protocol=protocol, seed=seed)
        self._pair = pair

    def nats(self, chosen: Sequence[int]) -> tuple[Tensor, int]:
        """KL(base ‖ model), summed over the scored tokens."""
        import torch
        from torch.nn.functional import kl_div, log_softmax

        batch = self._batch(chosen)
        with torch.no_grad(), self._pair.as_base():
            base_MV = log_softmax(self._forward.logits(batch)[0], dim=-1)
        logits_MV, targets_M = self._forward.logits(batch)
        model_MV = log_softmax(logits_MV, dim=-1)
        return kl_div(model_MV, base_MV, reduction="sum", log_target=True), len(targets_M)


class HeadItems(Items):
    """Examples that a head answers: a classification, or multiple choice with a head that scores choices.

    Args:
        model: The model with the head.
        task: The examples.
        max_tokens: Truncate the inputs to this many tokens.
    """

    def __init__(
        self, model: TaskModel, task: ClassificationTask | ChoiceTask, max_tokens: int | None
    ) -> None:
        self._model = model
        if isinstance(task, ClassificationTask):
            self._targets = task.numbers(model.labels)
            self._groups = [[each] for each in encoded_texts(model, task.texts, max_tokens)[0]]
            return
        self._targets = tuple(choice.answer for choice in task.choices)
        self._groups = [
            encoded_texts(model, list(zip(choice.prompts, choice.endings, strict=True)), max_tokens)[0]
            for choice in task.choices
        ]

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of each example, with all its choices."""
        return [sum(len(each["input_ids"]) for each in group) for group in self._groups]

    def nats(self, chosen: Sequence[int]) -> tuple[Tensor, int]:
        """Negative log-probability of the right answers."""
        import torch
        from torch.nn.functional import cross_entropy

        head: Any = self._model.model
        inputs = [each for index in chosen for each in self._groups[index]]
        batch = padded_batch(inputs, head.config.pad_token_id, head.device)
        if not self._model.labels:
            batch = {key: value.unsqueeze(1) for key, value in batch.items()}
        logits_BC = head(**batch).logits.float()
        targets = [self._targets[index] for index in chosen]
        if self._model.labels:
            target_B = torch.tensor(targets, device=head.device)
            return cross_entropy(logits_BC, target_B, reduction="sum"), len(targets)
        scores = torch.split(logits_BC[:, 0], [len(self._groups[index]) for index in chosen])
        return _answers(scores, targets), len(targets)


class EndingItems(Items):
    """Multiple choice under a language model: each choice scores the likelihood of its ending.

    Args:
        language: The model.
        task: The examples.
        protocol: As for :class:`TextItems`.
        seed: Likewise.
    """

    def __init__(self, language: LanguageModel, task: ChoiceTask, *, protocol: Protocol, seed: int) -> None:
        self._targets = [choice.answer for choice in task.choices]
        self._rows: list[list[list[Row]]] = []
        for choice in task.choices:
            endings = zip(choice.prompts, choice.endings, strict=True)
            windows = [ending_window(language, prompt, ending, 0, task.name)[0] for prompt, ending in endings]
            self._rows.append([rows_of([window], protocol, seed) for window in windows])
        self._forward = Forward(language, masked=protocol != "causal")

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of each example, with all its choices."""
        return [sum(len(row) for rows in choices for row in rows) for choices in self._rows]

    def nats(self, chosen: Sequence[int]) -> tuple[Tensor, int]:
        """Negative log-probability of the right endings among those given."""
        import torch
        from torch.nn.functional import cross_entropy

        endings = [rows for index in chosen for rows in self._rows[index]]
        flat = [row for rows in endings for row in rows]
        lost_M: Tensor = cross_entropy(*self._forward.logits(flat), reduction="none")
        sizes = [sum(len(row.positions) for row in rows) for rows in endings]
        sums = torch.split(lost_M, sizes)
        scores = -torch.stack([each.sum() for each in sums])
        parts = torch.split(scores, [len(self._rows[index]) for index in chosen])
        return _answers(parts, [self._targets[index] for index in chosen]), len(chosen)


def _answers(scores: Sequence[torch.Tensor], targets: Sequence[int]) -> Tensor:
    """Summed negative log-probability of the answers, among the choices of each example."""
    import torch

    lost = [-torch.log_softmax(own_C, 0)[answer] for own_C, answer in zip(scores, targets, strict=True)]
    return torch.stack(lost).sum()


def task_items(pair: LivePair, task: Task, *, max_tokens: int | None, seed: int) -> Items:
    """The loss of a task, as :func:`intruscope.forgetting.scores.score` measures it.

    Held-out text under a masked model is an exception: it is scored under random masks.

    Args:
        pair: The loaded pair.
        task: From :func:`intruscope.forgetting.tasks.load_task`.
        max_tokens: Truncate the inputs of a head to this many tokens.
        seed: Random seed of the masks of a masked model.

    Raises:
        IntruscopeError: the pair has no head for the task, or does not know its labels.
    """
    if isinstance(task, ClassificationTask):
        return HeadItems(pair.task_model(), task, max_tokens)
    if isinstance(task, ChoiceTask):
        model = pair.choice_model()
        if model is not None:
            return HeadItems(model, task, max_tokens)
        language = pair.language_model()
        return EndingItems(language, task, protocol=fit_protocol(language), seed=seed)
    return text_items(pair, task.corpus, general="loss", seed=seed)


def text_items(pair: LivePair, corpus: Corpus, *, general: General, seed: int) -> TextItems:
    """The loss on text, in short windows.

    Args:
        pair: The loaded pair.
        corpus: The text.
        general: ``loss``, or ``kl`` for the distance from the base's predictions.
        seed: Random seed of the masks of a masked model.

    Raises:
        IntruscopeError: there is no language-model head, or too little text.
    """
    language = pair.language_model()
    context = min(FIT_CONTEXT, language.max_context or FIT_CONTEXT)
    # Windows that hardly overlap: every token is read about once.
    stride = context - 1 if language.kind == "causal" else None
    return items_of(pair, cut(corpus, language, context=context, stride=stride), general=general, seed=seed)


def items_of(pair: LivePair, sequences: Sequences, *, general: General, seed: int) -> TextItems:
    """The same for text that is cut already. Arguments and errors as for :func:`text_items`."""
    protocol = fit_protocol(pair.language_model())
    if general == "kl":
        return BaseItems(pair, sequences, protocol=protocol, seed=seed)
    return TextItems(pair.language_model(), sequences, protocol=protocol, seed=seed)


def fit_protocol(language: LanguageModel) -> Protocol:
    """``causal``, or random masks for a masked model: the exact protocol takes a pass per token."""
    return "causal" if language.kind == "causal" else "fast"
