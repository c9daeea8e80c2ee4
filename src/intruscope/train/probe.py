"""The loss of a model on a fixed small text while it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import UsageError
from intruscope.forgetting.losses import choose_protocol, measure
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.train.language import evaluating, trained_language

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from intruscope.forgetting.losses import SequenceLosses

MAX_SEQUENCES = 64


class ForgettingProbe:
    """Nats per token of one text, again and again.

    A language model is measured as it is. Of a classifier the body is: its base's language-model head is put
    on it, as the paper does.

    Attributes:
        sha256: Of the text.
        tokens: Number of scored tokens of each sequence.

    Args:
        model: What is trained; a PeftModel or a transformers model.
        tokenizer: Of the model.
        text: Files, patterns or datasets, as ``forgetting.texts`` reads them.
        base: Where a classifier's language-model head is from.
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
        self._trained = model
        self._language = trained_language(model, tokenizer, base)
        corpus = read_texts(text)
        self.sha256 = corpus.sha256
        self._sequences = cut(corpus, self._language, max_sequences=max_sequences)
        windows = self._sequences.windows
        self.tokens = np.zeros(self._sequences.num_sequences, dtype=np.int64)
        np.add.at(self.tokens, [w.sequence for w in windows], [len(w.scored) for w in windows])
        kind = self._language.kind
        self._protocol = choose_protocol(kind, "fast" if kind == "masked" else None)

    def losses(self) -> SequenceLosses:
        """The losses of the sequences now; the model is left in the mode it was in.

        Raises:
            MalformedInput: one is no number.
        """
        with evaluating(self._trained, self._language.model):
            return measure(self._language, self._sequences, protocol=self._protocol)
