"""From documents to sequences, and from sequences to a model's inputs: every token is scored once.

A *sequence* is the item that the bootstrap resamples. With the unit ``line``, each line of a text file and
each row of a table is a sequence. With ``running``, a whole source is one stream that is cut into contexts,
and each context is a sequence. A *window* is one input of the model; a sequence longer than a context has
several.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import MalformedInput, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from intruscope.adapters.live import LanguageModel
    from intruscope.forgetting.settings import Unit
    from intruscope.forgetting.texts import Corpus

DEFAULT_CONTEXT = {"causal": 1024, "masked": 512}
_MAX_UNKNOWN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One input of a model.

    Attributes:
        ids: Token ids, including special ones.
        scored: Positions whose tokens are scored in this window.
        sequence: Index of the sequence that they belong to.
    """

    ids: NDArray[np.int64]
    scored: NDArray[np.int64]
    sequence: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """What is measured, the same for every model.

    Attributes:
        windows: All inputs.
        bytes_N: Number of UTF-8 bytes that the scored tokens of each sequence represent.
        unit: What a sequence is.
        context: Longest input, in tokens.
        stride: Tokens scored in each further window of a causal model; None for a masked one.
        num_left_out: Sequences without a token that can be scored, or beyond the maximum number.
    """

    windows: tuple[Window, ...]
    bytes_N: NDArray[np.int64]
    unit: Unit
    context: int
    stride: int | None
    num_left_out: int

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return len(self.bytes_N)

    @property
    def num_tokens(self) -> int:
        """Number of scored tokens in all sequences."""
        return sum(len(window.scored) for window in self.windows)

    def only(self, chosen: Sequence[int]) -> Sequences:
        """Some of the sequences, in the given order; all others count as left out."""
        place = {sequence: index for index, sequence in enumerate(chosen)}
        return replace(
            self,
            windows=tuple(
                replace(window, sequence=place[window.sequence])
                for window in self.windows
                if window.sequence in place
            ),
            bytes_N=self.bytes_N[list(chosen)],
            num_left_out=self.num_left_out + self.num_sequences - len(chosen),
        )


def spread(num: int, num_chosen: int) -> NDArray[np.int64]:
    """Indices of ``num_chosen`` of ``num`` items, spread evenly from the first to the last."""
    return np.linspace(0, num - 1, num_chosen).round().astype(np.int64)


def default_unit(kind: str) -> Unit:
    """``running`` for a causal language model, ``line`` for a masked one."""
    return "running" if kind == "causal" else "line"


def cut(
    corpus: Corpus,
    language: LanguageModel,
    *,
    unit: Unit | None = None,
    context: int | None = None,
    stride: int | None = None,
    max_sequences: int | None = None,
) -> Sequences:
    """Cut a corpus into the inputs of a model.

    Args:
        corpus: The text.
        language: Its tokenizer, kind and longest input.
        unit: What a sequence is; :func:`default_unit` by default.
        context: Longest input in tokens; by default the model's, at most 1024 (causal) or 512 (masked).
        stride: How far each window of a causal model moves on, in tokens; half a context by default. The rest
            of the window is context that was scored before.
        max_sequences: Maximum number of sequences, sampled evenly.

    Raises:
        UsageError: a context or stride that is out of range.
        MalformedInput: too little text, or a tokenizer that does not fit the model.
    """
    unit = unit or default_unit(language.kind)
    before, after = special_ids(language.tokenizer)
    if language.kind == "causal":
        after = []
    context = _checked_context(context, language, len(before) + len(after))
    if language.kind == "causal":
        stride = _checked_stride(stride, context)
    elif stride is not None:
        raise UsageError("--stride has no meaning for a masked language model", remedy="leave --stride out")
    texts = _texts(corpus, unit)
    parts: list[tuple[list[Window], list[int]]] = []
    cutter = _Cutter(language, before, after, context, stride)
    for ids, ends in _tokenised(texts, language.tokenizer):
        parts.append(cutter.cut(ids, ends))
    cutter.check_fit()
    if unit == "running":
        needed = context - len(before) - len(after)
        longest = max(sum(len(w.scored) for w in windows) + (not before) for windows, _ in parts)
        if longest < needed:
            raise MalformedInput(
                f"the text has {longest} tokens, but at least one context of {needed} is needed",
                remedy="give more text, a smaller --context, or --unit line",
            )
        # Each window is its own sequence.
        singles = [([w], [size]) for windows, sizes in parts for w, size in zip(windows, sizes, strict=True)]
    else:
        singles = parts
    kept = [(windows, sum(sizes)) for windows, sizes in singles if windows]
    return _collected(kept, len(singles), unit, context, stride, max_sequences)


def _collected(
    kept: list[tuple[list[Window], int]],
    num_all: int,
    unit: Unit,
    context: int,
    stride: int | None,
    max_sequences: int | None,
) -> Sequences:
    if max_sequences is not None and len(kept) > max_sequences:
        kept = [kept[i] for i in spread(len(kept), max_sequences)]
    if len(kept) < 2:
        raise MalformedInput(
            f"the text has {len(kept)} sequences with a token to score; an interval needs at least 2",
            remedy="give more text, or a smaller --context"
            if unit == "running"
            else "give more lines, or --unit running for a text without line breaks",
        )
    windows = tuple(
        Window(ids=window.ids, scored=window.scored, sequence=index)
        for index, (own, _) in enumerate(kept)
        for window in own
    )
    return Sequences(
        windows=windows,
        bytes_N=np.array([size for _, size in kept], dtype=np.int64),
        unit=unit,
        context=context,
        stride=stride,
        num_left_out=num_all - len(kept),
    )


def _checked_context(context: int | None, language: LanguageModel, num_special: int) -> int:
    limit = language.max_context
    if context is None:
        context = min(DEFAULT_CONTEXT[language.kind], limit or DEFAULT_CONTEXT[language.kind])
    smallest = num_special + 2
    if context < smallest or (limit is not None and context > limit):
        raise UsageError(
            f"--context is {context} tokens, but it must be at least {smallest}"
            + ("" if limit is None else f" and at most {limit}, the model's longest input"),
            remedy="change --context, or leave it out",
        )
    return context


def _checked_stride(stride: int | None, context: int) -> int:
    if stride is None:
        return max(1, context // 2)
    if not 1 <= stride < context:
        raise UsageError(
            f"--stride is {stride}, but it must be between 1 and {context - 1}, so that each window overlaps "
            "the one before",
            remedy="change --stride, or leave it out",
        )
    return stride


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    inner = [i for i, special in enumerate(mask) if not special]
    if not inner:  # "a" itself is unknown and counted as special
        inner = [i for i in range(len(ids)) if ids[i] == tokenizer.unk_token_id] or [0]
    return ids[: inner[0]], ids[inner[-1] + 1 :]


def _texts(corpus: Corpus, unit: Unit) -> list[str]:
    if unit == "line":
        found: list[str] = []
        for document in corpus.documents:
            # Not splitlines, which also splits at form feeds and the like.
            rows = [document.text] if document.is_row else re.split("\r\n|\n|\r", document.text)
            found += [row for row in rows if row.strip()]
        return found
    streams: dict[int, list[str]] = {}
    for document in corpus.documents:
        streams.setdefault(document.source, []).append(document.text)
    return ["\n\n".join(rows) for rows in streams.values()]


def _tokenised(texts: list[str], tokenizer: Any) -> Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Token ids of each text without special tokens, and the byte at which each token ends."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    result = []
    for index, text in enumerate(texts):
        ids = np.asarray(encoded["input_ids"][index], dtype=np.int64)
        num_bytes = len(text.encode("utf-8", "surrogatepass"))
        if fast:
            last = np.asarray([end for _, end in encoded["offset_mapping"][index]], dtype=np.int64)
            ends = last if num_bytes == len(text) else _byte_ends(text)[last]
        else:  # without offsets, bytes are spread evenly over the tokens
            ends = num_bytes * np.arange(1, len(ids) + 1) // max(1, len(ids))
        result.append((ids, np.maximum.accumulate(ends) if len(ends) else ends))
    return result


def _byte_ends(text: str) -> NDArray[np.int64]:
    """Number of bytes before each character, and in all: (characters + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


class _Cutter:
    """Cuts token streams into windows, and checks that the tokenizer fits the model."""

    def __init__(
        self, language: LanguageModel, before: list[int], after: list[int], context: int, stride: int | None
    ) -> None:
        self._language = language
        self._before = np.asarray(before, dtype=np.int64)
        self._after = np.asarray(after, dtype=np.int64)
        self._context = context
        self._stride = stride
        model: Any = language.model
        self._num_words: int = model.get_input_embeddings().num_embeddings
        tokenizer = language.tokenizer
        special = (
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.mask_token_id,
            tokenizer.pad_token_id,
        )
        self._never_scored = [i for i in special if i is not None]
        self._unknown = tokenizer.unk_token_id
        self._num_tokens = self._num_unknown = 0
        if language.kind == "masked" and tokenizer.mask_token_id is None:
            fact = "the tokenizer is without a mask token, which a masked language model needs"
            raise MalformedInput(fact, remedy="give the model's own tokenizer with --tokenizer")

    def cut(self, ids: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[list[Window], list[int]]:
        """The windows of one stream, and the number of bytes that the scored tokens of each represent."""
        if len(ids) and int(ids.max()) >= self._num_words:
            raise MalformedInput(
                f"the tokenizer produced token {int(ids.max())}, but the model's vocabulary ends at "
                f"{self._num_words - 1}",
                remedy="give the model's own tokenizer with --tokenizer",
            )
        self._num_tokens += len(ids)
        if self._unknown is not None:
            self._num_unknown += int((ids == self._unknown).sum())
        return self._causal(ids, ends) if self._stride is not None else self._masked(ids, ends)

    def check_fit(self) -> None:
        """Refuse a tokenizer that knows hardly any of the text."""
        if self._num_tokens and self._num_unknown > _MAX_UNKNOWN_SHARE * self._num_tokens:
            share = self._num_unknown / self._num_tokens
            raise MalformedInput(
                f"the tokenizer does not know {share:.0%} of the text",
                remedy="give the model's own tokenizer with --tokenizer, or text in its language",
            )

    def _causal(self, ids: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[list[Window], list[int]]:
        assert self._stride is not None
        stream = np.concatenate([self._before, ids])
        num_before = len(self._before)
        first = max(1, num_before)  # the first token that has something before it
        windows, sizes = [], []
        done = first
        stop = min(self._context, len(stream))
        while done < len(stream):
            start = max(0, stop - self._context)
            windows.append(
                Window(ids=stream[start:stop], scored=np.arange(done - start, stop - start), sequence=0)
            )
            sizes.append(_span(ends, done - num_before, stop - num_before))
            done, stop = stop, min(stop + self._stride, len(stream))
        return windows, sizes

    def _masked(self, ids: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[list[Window], list[int]]:
        room = self._context - len(self._before) - len(self._after)
        windows, sizes = [], []
        num_parts = -(-len(ids) // room)
        # Parts of equal size: a short last part would have hardly any context.
        for part in np.array_split(np.arange(len(ids)), num_parts) if num_parts else []:
            own = ids[part]
            scored = np.flatnonzero(~np.isin(own, self._never_scored)) + len(self._before)
            if not len(scored):
                continue
            whole = np.concatenate([self._before, own, self._after])
            windows.append(Window(ids=whole, scored=scored, sequence=0))
            sizes.append(_span(ends, int(part[0]), int(part[-1]) + 1))
        return windows, sizes


def _span(ends: NDArray[np.int64], first: int, stop: int) -> int:
    """Number of bytes in the tokens from ``first`` to before ``stop``."""
    return int(ends[stop - 1] - (ends[first - 1] if first > 0 else 0))
