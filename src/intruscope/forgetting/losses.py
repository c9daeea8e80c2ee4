"""Losses on text, sequence by sequence: causal cross-entropy and the masked pseudo-loss.

- causal: each token is predicted from those before it in its window.
- exact: each token in turn is replaced by the mask token and predicted from all others (the
  pseudo-log-likelihood of Salazar et al., ACL 2020).
- fast: every token is masked once, together with about 15% of its window, in random groups: a few passes per
  window. The masks depend only on the text and the seed, so they are the same for every model.

Shape suffixes: B rows of a batch, T positions, M scored tokens, N sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import MalformedInput, ResourceExhausted, UsageError
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS, Protocol
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from intruscope.adapters.live import LanguageModel
    from intruscope.forgetting.guided import Guided
    from intruscope.forgetting.windows import Sequences, Window

PROTOCOLS: dict[Protocol, str] = {
    "causal": "causal-cross-entropy/1",
    "exact": "masked-pseudo-loss-exact/1",
    "fast": "masked-pseudo-loss-fast/1",
}
MASKED_FRACTION = 0.15
_MAX_LOGITS = 1 << 27
"""Logits held at once: half a gibibyte in float32."""
_MAX_PADDING = 0.1
_MIN_POSITIONS = 512
"""Batches with fewer positions are too small for padding to matter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceLosses:
    """Losses of one model, one entry per sequence.

    Attributes:
        nats: Sum over the scored tokens; float64.
        tokens: Number of scored tokens.
        bytes: Number of UTF-8 bytes that they represent.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @property
    def nats_per_token(self) -> float:
        """Mean over all tokens."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def nats_per_byte(self) -> float:
        """The same per byte, which does not depend on the tokenizer."""
        return float(self.nats.sum() / self.bytes.sum())

    @property
    def perplexity(self) -> float:
        """Exponential of nats per token, infinite on overflow; the pseudo-perplexity of a masked protocol."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One row of a batch: an input, and the positions whose tokens it predicts."""

    window: Window
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.window.ids)


def choose_protocol(kind: str, asked: str | None) -> Protocol:
    """The protocol for a kind of model.

    Args:
        kind: ``causal`` or ``masked``.
        asked: ``causal``, ``exact``, ``fast``, or None for the kind's default.

    Raises:
        UsageError: a protocol for the other kind.
    """
    fitting: tuple[Protocol, ...] = ("causal",) if kind == "causal" else ("exact", "fast")
    if asked is None:
        return fitting[0]
    for protocol in fitting:
        if protocol == asked:
            return protocol
    raise UsageError(
        f"the protocol {asked} does not fit a {kind} language model",
        remedy=f"use --protocol {' or '.join(fitting)}, or leave it out",
    )


def measure(
    language: LanguageModel,
    sequences: Sequences,
    *,
    protocol: Protocol,
    seed: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    name: str | None = None,
    guided: Guided | None = None,
    on_progress: OnProgress = ignore_progress,
) -> SequenceLosses:
    """The losses of a model in its present state, or of that state and the base together.

    Args:
        language: The model.
        sequences: What to measure on.
        protocol: How to compute losses.
        seed: Random seed of the fast protocol's masks.
        batch_tokens: Maximum number of positions per batch, including padding; a batch has at least one row.
        name: The model's name, for errors.
        guided: The pair that the model is of, for the losses of the mixture.
        on_progress: Called after each batch, in tokens.

    Returns:
        Losses in the order of the sequences, whatever the order of computation.

    Raises:
        MalformedInput: a loss is NaN or infinite.
        ResourceExhausted: a batch does not fit on the device.
    """
    rows = rows_of(sequences.windows, protocol, seed)
    nats = np.zeros(sequences.num_sequences)
    tokens = np.zeros(sequences.num_sequences, dtype=np.int64)
    forward = Forward(language, masked=protocol != "causal", guided=guided)
    done = 0
    for batch in _batches(rows, batch_tokens, forward.num_words):
        lost = forward.nats(batch)
        owners = np.repeat([row.window.sequence for row in batch], [len(row.positions) for row in batch])
        _check_finite(lost, owners, name)
        np.add.at(nats, owners, lost)
        np.add.at(tokens, owners, 1)
        done += len(lost)
        on_progress(Progress(stage="reading text", done=done, total=sequences.num_tokens, unit="tokens"))
    return SequenceLosses(nats=nats, tokens=tokens, bytes=sequences.bytes_N)


def positions_per_sequence(sequences: Sequences, protocol: Protocol) -> NDArray[np.int64]:
    """Token positions that a model processes for each sequence under a protocol: what a measurement costs."""
    found = np.zeros(sequences.num_sequences, dtype=np.int64)
    for window in sequences.windows:
        found[window.sequence] += _num_groups(window, protocol) * len(window.ids)
    return found


def rows_of(windows: Sequence[Window], protocol: Protocol, seed: int) -> list[Row]:
    """All rows, longest first: memory runs out at once or never, and neighbours need little padding.

    Args:
        windows: Inputs of a model.
        protocol: How losses are computed.
        seed: Random seed of the fast protocol's masks.
    """
    rows: list[Row] = []
    for index, window in enumerate(windows):
        rows += [Row(window=window, positions=group) for group in _groups(window, index, protocol, seed)]
    return sorted(rows, key=len, reverse=True)


def _groups(window: Window, index: int, protocol: Protocol, seed: int) -> list[NDArray[np.int64]]:
    """Groups of positions that are predicted together."""
    if protocol == "causal":
        return [window.scored]
    if protocol == "exact":
        return list(window.scored[:, None])
    shuffled = np.random.default_rng([seed, index]).permutation(window.scored)
    return [np.sort(group) for group in np.array_split(shuffled, _num_groups(window, protocol))]


def _num_groups(window: Window, protocol: Protocol) -> int:
    most = {"causal": 1, "exact": len(window.scored), "fast": round(1 / MASKED_FRACTION)}[protocol]
    return min(len(window.scored), most)


def _batches(rows: list[Row], batch_tokens: int, num_words: int) -> Iterator[list[Row]]:
    """Rows that run together: within the limits, and of similar length where there are enough of them."""
    batch: list[Row] = []
    num_scored = num_real = 0
    for row in rows:
        if batch:
            padded = (len(batch) + 1) * len(batch[0])
            loose = padded > _MIN_POSITIONS and num_real + len(row) < (1 - _MAX_PADDING) * padded
            many = (num_scored + len(row.positions)) * num_words > _MAX_LOGITS
            if padded > batch_tokens or loose or many:
                yield batch
                batch, num_scored, num_real = [], 0, 0
        batch.append(row)
        num_scored += len(row.positions)
        num_real += len(row)
    if batch:
        yield batch


class Forward:
    """Runs a language model and computes logits only where a token is scored.

    The head is half the work of a small model. It treats every position alike, so the body's output is cut
    down to the scored positions on its way to the head. That is checked once, on two rows; a model whose head
    does more keeps all positions.
    """

    def __init__(self, language: LanguageModel, *, masked: bool, guided: Guided | None = None) -> None:
        self._model: Any = language.model
        self._guided = guided
        self._masked = masked
        tokenizer = language.tokenizer
        self._mask_id: int = tokenizer.mask_token_id if masked else 0
        self.num_words: int = self._model.get_input_embeddings().num_embeddings
        padding = tokenizer.pad_token_id
        # A padding token that was only added to the tokenizer has no row in the model; it is never attended
        # to.
        self._pad_id = padding if padding is not None and padding < self.num_words else 0
        self._cuts: bool | None = None if self._model.base_model is not self._model else False

    def nats(self, batch: list[Row]) -> NDArray[np.float64]:
        """Negative log-probability of every scored token, row by row.

        Raises:
            ResourceExhausted: a batch does not fit on the device.
        """
        import torch
        from torch.nn.functional import cross_entropy

        with torch.inference_mode():
            lost: torch.Tensor = cross_entropy(*self.logits(batch), reduction="none")
            found: NDArray[np.float64] = lost.cpu().double().numpy()
        return found

    def logits(self, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of every scored token (M, words) in float32 or wider, and the tokens themselves (M,).

        They carry gradients where the caller's mode allows it.

        Raises:
            ResourceExhausted: a batch does not fit on the device.
        """
        import torch

        arrays = self._arrays(batch)
        try:
            if self._cuts is None:
                few = [torch.from_numpy(array).to(self._model.device) for array in self._arrays(batch[-2:])]
                self._cuts = self._may_cut(*few[:4])
            tensors = [torch.from_numpy(array).to(self._model.device) for array in arrays]
            run = partial(self._cut_run if self._cuts else self._whole_run, *tensors[:4])
            logits_MV = run() if self._guided is None else self._guided.logits(run)
            return logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)), tensors[4]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceExhausted(
                f"not enough memory on {self._model.device} for a batch of {arrays[0].size} token positions",
                remedy="lower --batch-tokens, or choose another --device",
            ) from error

    def _arrays(self, batch: list[Row]) -> tuple[NDArray[np.int64], ...]:
        """Ids and attention (B, T); the row, position to read and target of each scored token (M,)."""
        ids = np.full((len(batch), max(map(len, batch))), self._pad_id, dtype=np.int64)
        attention = np.zeros_like(ids)
        rows = np.repeat(np.arange(len(batch)), [len(row.positions) for row in batch])
        positions = np.concatenate([row.positions for row in batch])
        for index, row in enumerate(batch):
            ids[index, : len(row)] = row.window.ids
            attention[index, : len(row)] = 1
        targets = ids[rows, positions]
        if self._masked:
            ids[rows, positions] = self._mask_id
        return ids, attention, rows, positions if self._masked else positions - 1, targets

    def _may_cut(self, *tensors: torch.Tensor) -> bool:
        """Whether the head returns the same for the cut output as for the whole one."""
        import torch

        with torch.inference_mode():
            whole_MV, cut_MV = self._whole_run(*tensors), self._cut_run(*tensors)
            spread = 64 * torch.finfo(whole_MV.dtype).eps * whole_MV.abs().max().clamp(min=1.0)
            same_shape = cut_MV.shape == whole_MV.shape
            return same_shape and bool(((cut_MV - whole_MV).abs() <= spread).all())

    def _whole_run(
        self, ids_BT: torch.Tensor, attention_BT: torch.Tensor, rows_M: torch.Tensor, read_M: torch.Tensor
    ) -> torch.Tensor:
        """(M, words), taken from the logits of all positions."""
        return self._run(ids_BT, attention_BT)[rows_M, read_M]

    def _cut_run(
        self, ids_BT: torch.Tensor, attention_BT: torch.Tensor, rows_M: torch.Tensor, read_M: torch.Tensor
    ) -> torch.Tensor:
        """(M, words), with the head run on the scored positions only."""

        def keep_scored(_module: object, _arguments: object, output: Any) -> Any:
            picked = output[0][rows_M, read_M].unsqueeze(0)
            if isinstance(output, tuple):
                return (picked, *output[1:])
            output["last_hidden_state"] = picked
            return output

        hook = self._model.base_model.register_forward_hook(keep_scored)
        try:
            return self._run(ids_BT, attention_BT)[0]
        finally:
            hook.remove()

    def _run(self, ids_BT: torch.Tensor, attention_BT: torch.Tensor) -> torch.Tensor:
        more = {} if self._masked else {"use_cache": False}
        logits: torch.Tensor = self._model(input_ids=ids_BT, attention_mask=attention_BT, **more).logits
        return logits


def _check_finite(lost: NDArray[np.float64], owners: NDArray[np.int64], name: str | None) -> None:
    bad = np.flatnonzero(~np.isfinite(lost))
    if len(bad):
        raise MalformedInput(
            f"the loss of sequence {owners[bad[0]]} is {lost[bad[0]]}",
            remedy="look for non-finite weights with intruscope scan; with float16, try --dtype float32",
            file=name,
        )
