"""Forgetting after a stage: the loss of the written body on text, less the original base's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.forgetting.intervals import paired_difference
from intruscope.forgetting.losses import PROTOCOLS, choose_protocol, measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.windows import cut
from intruscope.progress import OnProgress, ignore_progress
from intruscope.sequence.records import ForgettingFigures

if TYPE_CHECKING:
    from intruscope.forgetting.texts import Corpus


def text_losses(
    model: str,
    corpus: Corpus,
    *,
    max_sequences: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Losses of one model, sequence by sequence; a masked one by the fast protocol, as in a sweep.

    Args:
        model: The base, or the written body of a stage.
        corpus: The text.
        max_sequences: At most so many, spread evenly.
        seed: Of the masks.
        tokenizer: Folder of one; the model's by default.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called after each batch, in tokens.

    Returns:
        Plain data for :func:`figures`.

    Raises:
        IntruscopeError: no language-model head, or a loss that is not finite.
    """
    pair = load_pair(model, model, tokenizer=tokenizer, allow_pickle=allow_pickle)
    language = pair.language_model()
    protocol = choose_protocol(language.kind, "fast" if language.kind == "masked" else None)
    sequences = cut(corpus, language, max_sequences=max_sequences)
    with pair.as_base():
        found = measure(
            language, sequences, protocol=protocol, seed=seed, name=model, on_progress=on_progress
        )
    return {
        "protocol": PROTOCOLS[protocol],
        "nats": found.nats.tolist(),
        "tokens": found.tokens.tolist(),
    }


def figures(before: dict[str, Any], after: dict[str, Any], *, seed: int) -> ForgettingFigures:
    """Two records by :func:`text_losses` of the same text, compared.

    Args:
        before: Of the original base.
        after: Of a stage.
        seed: Of the bootstrap.
    """
    return ForgettingFigures(
        change=paired_difference(before["nats"], after["nats"], before["tokens"], seed=seed),
        loss=sum(after["nats"]) / sum(after["tokens"]),
        protocol=after["protocol"],
    )
