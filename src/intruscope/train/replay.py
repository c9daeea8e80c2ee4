"""General text that every training step also learns from, so that the model forgets less of it.

The loss of a step is ``task + weight * replay``. The replayed part is the mean over the scored tokens of as
many sequences of the text as the step has examples: either their negative log-probability (target ``text``)
or the Kullback-Leibler divergence from the base's predictions to the model's (target ``base``, as in Li &
Hoiem 2016, arXiv 1606.09282, at temperature 1). Which sequences a step takes, and which tokens a masked
language model predicts, depends on the seed and the step alone: not on torch's random state, on how the batch
is split, or on where a run was resumed.

Shape suffixes: M scored tokens of a batch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div

from intruscope.errors import UsageError
from intruscope.forgetting.disjoint import MAX_SHARED_LINES, telling_lines
from intruscope.forgetting.losses import MASKED_FRACTION, Forward, Row
from intruscope.forgetting.windows import cut
from intruscope.methods.attached import switched_off
from intruscope.train.language import evaluating, load_language, trained_language
from intruscope.train.settings import Replayed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from intruscope.adapters.live import LanguageModel
    from intruscope.forgetting.texts import Corpus
    from intruscope.forgetting.windows import Sequences, Window
    from intruscope.methods.contract import Attached, Method
    from intruscope.train.settings import TuneSettings
    from intruscope.weights.source import ModelSource

_ORDER, _MASKS = 0, 1
"""Streams of random numbers that one seed gives."""


class ReplayOrder:
    """Which rows each step replays: pass after pass over the windows, each in another order.

    Args:
        sequences: The windows of the text.
        masked: Whether a share of the tokens is masked and predicted; otherwise all are predicted.
        batch: Rows per step.
        seed: Random seed.
    """

    def __init__(self, sequences: Sequences, *, masked: bool, batch: int, seed: int) -> None:
        self._windows = sequences.windows
        self._masked = masked
        self.batch = batch
        self._seed = seed
        self._pass: tuple[int, NDArray[np.int64]] | None = None

    def rows(self, step: int) -> list[Row]:
        """The rows of a step, counted from 0."""
        first = step * self.batch
        return [self._row(place) for place in range(first, first + self.batch)]

    def num_tokens(self, num_steps: int) -> int:
        """Number of tokens that are predicted in so many steps."""
        counts = np.array([self._count(window) for window in self._windows])
        passes, rest = divmod(num_steps * self.batch, len(counts))
        return int(passes * counts.sum() + counts[self._order(passes)[:rest]].sum())

    def _row(self, place: int) -> Row:
        number, offset = divmod(place, len(self._windows))
        window = self._windows[self._order(number)[offset]]
        if not self._masked:
            return Row(window=window, positions=window.scored)
        generator = np.random.default_rng([self._seed, _MASKS, place])
        chosen = generator.choice(window.scored, self._count(window), replace=False)
        return Row(window=window, positions=np.sort(chosen))

    def _count(self, window: Window) -> int:
        """Number of tokens that are predicted at once in a window."""
        return max(1, round(MASKED_FRACTION * len(window.scored))) if self._masked else len(window.scored)

    def _order(self, number: int) -> NDArray[np.int64]:
        """The windows in the order of one pass."""
        if self._pass is None or self._pass[0] != number:
            generator = np.random.default_rng([self._seed, _ORDER, number])
            self._pass = number, generator.permutation(len(self._windows))
        return self._pass[1]


class Teacher(Protocol):
    """The base, whose predictions are kept."""

    def __call__(self, batch: list[Row]) -> Tensor:
        """Log-probabilities at every scored token: (M, words), without gradients."""


class Replay:
    """The replayed part of every training step.

    Args:
        language: The model in training; see :func:`intruscope.train.language.trained_language`.
        order: Which rows each step takes.
        record: What is replayed.
        teacher: The base, for the target ``base``; None for the target ``text``.
    """

    def __init__(
        self, language: LanguageModel, order: ReplayOrder, record: Replayed, *, teacher: Teacher | None = None
    ) -> None:
        self._forward = Forward(language, masked=language.kind == "masked")
        self._order = order
        self._record = record
        self._teacher = teacher
        with evaluating(language.model):  # dropout would hide that the head can do with the scored positions
            self._forward.nats(order.rows(0)[:2])

    def record(self, num_steps: int, loss: float | None) -> Replayed:
        """What was replayed in so many steps, and the mean loss when it was last logged."""
        seen = num_steps * self._order.batch
        return replace(
            self._record, num_replayed=seen, num_predicted=self._order.num_tokens(num_steps), loss=loss
        )

    def backward(self, step: int, accelerator: Any, *, parts: int = 1) -> Tensor:
        """Add this process's share of a step's gradient.

        It goes around the wrapper that averages gradients over processes, and must therefore come before the
        wrapper's own backward pass, which takes along what is in ``.grad``.

        Args:
            step: Number of optimiser steps done.
            accelerator: accelerate's.
            parts: Into how many batches the share is split.

        Returns:
            This process's share of the loss, without the weight: a scalar; the shares add up to the mean over
            the tokens.
        """
        rows = self._order.rows(step)
        num_tokens = sum(len(row.positions) for row in rows)
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        total = torch.zeros((), device=accelerator.device)
        for places in np.array_split(np.arange(len(mine)), parts):
            batch = [mine[place] for place in places]
            if not batch:
                continue
            loss = self._sum(batch, accelerator) / num_tokens
            # Gradients are averaged over the processes.
            accelerator.backward(self._record.weight * accelerator.num_processes * loss)
            total += loss.detach()
        return total

    def _sum(self, batch: list[Row], accelerator: Any) -> Tensor:
        """The loss summed over the scored tokens of a batch."""
        wanted = None
        if self._teacher is not None:
            with accelerator.autocast():
                wanted = self._teacher(batch)
        with accelerator.autocast():  # not the teacher's, which would keep casts of weights without gradients
            logits_MV, targets_M = self._forward.logits(batch)
        if wanted is None:
            return cross_entropy(logits_MV, targets_M, reduction="sum")
        return kl_div(logits_MV.log_softmax(-1), wanted, reduction="sum", log_target=True)


def make_replay(
    attached: Attached,
    method: Method,
    tokenizer: Any,
    source: ModelSource,
    corpus: Corpus,
    settings: TuneSettings,
    *,
    batch: int,
    max_length: int,
) -> Replay:
    """What is replayed in a run.

    Args:
        attached: A method on the model, on its device.
        method: Its description.
        tokenizer: Of the model.
        source: The base.
        corpus: The text.
        settings: Weight, target and seed.
        batch: Sequences per step.
        max_length: Longest sequence in tokens.

    Raises:
        IntruscopeError: the base has no language-model head, or there is too little text.
    """
    language = trained_language(attached.model, tokenizer, source)
    is_causal = language.kind == "causal"
    limit = min(max_length, language.max_context or max_length)
    sequences = cut(corpus, language, context=limit, stride=limit - 1 if is_causal else None)
    order = ReplayOrder(sequences, masked=not is_causal, batch=batch, seed=settings.seed)
    teacher: Teacher | None = None
    if settings.replay_target == "base":
        copied = needs_copy(method)
        teacher = _FrozenCopy(source, language) if copied else _AdapterOff(attached.model, language)
    record = Replayed(
        text=tuple(each.name for each in corpus.sources),
        sha256=corpus.sha256,
        target=settings.replay_target,
        weight=settings.replay_weight,
        num_sequences=len(sequences.windows),
        num_tokens=sequences.num_tokens,
    )
    return Replay(language, order, record, teacher=teacher)


def needs_copy(method: Method) -> bool:
    """Whether the base's predictions need a second copy of it: no adapter can be switched off to have it."""
    return bool(method.departures & {"trains_base", "moves_base"})


def copy_bytes(source: ModelSource) -> int:
    """Memory of such a copy: the base in float32."""
    return sum(4 * math.prod(tensor.shape) for tensor in source.tensors.values() if tensor.decodable)


class _FrozenCopy:
    """The base loaded once more, beside the model that is trained."""

    def __init__(self, source: ModelSource, language: LanguageModel) -> None:
        model, _ = load_language(source)
        model.requires_grad_(False).to(language.model.device)
        self._forward = Forward(replace(language, model=model), masked=language.kind == "masked")

    @torch.no_grad()
    def __call__(self, batch: list[Row]) -> Tensor:
        return self._forward.logits(batch)[0].log_softmax(-1)


class _AdapterOff:
    """The model that is trained, with its adapter switched off and without dropout."""

    def __init__(self, model: Any, language: LanguageModel) -> None:
        self._model = model
        self._language = language.model
        self._forward = Forward(language, masked=language.kind == "masked")

    @torch.no_grad()
    def __call__(self, batch: list[Row]) -> Tensor:
        with evaluating(self._model, self._language), switched_off(self._model):
            return self._forward.logits(batch)[0].log_softmax(-1)


def check_apart(used: Corpus, measured: Corpus, *, flag: str = "--replay", how: str = "replayed") -> None:
    """Refuse to measure forgetting on text that is also trained with.

    No document may be in both, and hardly any of the measured text's longer lines, whatever kind of file they
    are in.

    Args:
        used: Text that training uses.
        measured: Text on which forgetting is measured.
        flag: Where the first one was given.
        how: What it is.

    Raises:
        UsageError: the texts overlap.
    """
    documents = {document.text.strip() for document in used.documents}
    same = sum(document.text.strip() in documents for document in measured.documents)
    known = {line for document in used.documents for line in telling_lines(document.text)}
    lines = [line for document in measured.documents for line in telling_lines(document.text)]
    shared = sum(line in known for line in lines) / len(lines) if lines else 0.0
    if same or shared > MAX_SHARED_LINES:
        what = f"{same} of its documents are" if same else f"{shared:.0%} of its longer lines are"
        raise UsageError(
            f"the text that forgetting is measured on is also {how} ({what} in both), so forgetting would "
            "be measured on training data",
            remedy=f"give --forget-text and {flag} different texts",
        )
