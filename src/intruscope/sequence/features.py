"""What a head sees of a frozen body: the input of the first layer that is the task's own.

It is taken from the model's own class while it runs, so that it is right for every architecture: after the
pooler where the base has one and the class uses it (BERT), the first token's state where head or pooler are
new (RoBERTa, DistilBERT, a masked model's checkpoint), the last token's for a causal model.

Shape suffixes: B rows of a batch, T tokens, D features, N examples, R rows (an example's choices follow each
other).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from intruscope.adapters.live_models import language_class
from intruscope.errors import MalformedInput, ResourceExhausted, UnsupportedFormat
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from intruscope.train.data import Example, TrainingData
    from intruscope.train.loading import Loaded


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """A task through a frozen body.

    Attributes:
        rows_RD: One row per example, or per choice of each example.
        first_N: Row of each example's first choice; of each example itself in a classification.
        right_N: Class, or right choice, of each example.
    """

    rows_RD: NDArray[np.float64]
    first_N: NDArray[np.intp]
    right_N: NDArray[np.intp]


def features(
    loaded: Loaded,
    data: TrainingData,
    *,
    bf16: bool = False,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> Features:
    """Run a frozen model over a task and keep what its head sees.

    Args:
        loaded: The model; its head may be of another task of the same kind.
        data: Of that kind.
        bf16: Compute in bfloat16, as in training.
        batch_tokens: Positions per batch, padding included; at least one example is always taken.

    Raises:
        MalformedInput: a feature is NaN or infinite.
        ResourceExhausted: no memory for a batch.
        UnsupportedFormat: the model's class gives its head something else than one vector per input.
    """
    rows = data.examples.rows
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model: nn.Module = loaded.model.to(device).eval()
    order = sorted(range(len(rows)), key=lambda i: _length(rows[i]), reverse=True)
    found: list[NDArray[np.float32]] = [np.empty((0, 0), dtype=np.float32)] * len(rows)
    done = 0
    while done < len(order):
        per_example = _length(rows[order[done]]) * _num_inputs(rows[order[done]])
        chosen = order[done : done + max(1, batch_tokens // per_example)]
        batch = {name: value.to(device) for name, value in data.collate([rows[i] for i in chosen]).items()}
        batch.pop("labels")
        try:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                seen_BD = _head_input(loaded, model, batch)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceExhausted(
                f"out of memory for {len(chosen)} examples of {per_example} tokens",
                remedy="lower --max-length",
            ) from error
        start = 0
        for index in chosen:
            stop = start + _num_inputs(rows[index])
            found[index] = seen_BD[start:stop]
            start = stop
        if start != len(seen_BD):
            raise _strange(loaded)
        done += len(chosen)
    sizes = np.array([len(each) for each in found], dtype=np.intp)
    rows_RD = np.concatenate(found).astype(np.float64)
    if not np.isfinite(rows_RD).all():
        raise MalformedInput(
            "the body's output contains NaN or infinity",
            remedy="lower --lr, or look for non-finite weights with intruscope scan",
        )
    return Features(
        rows_RD=rows_RD,
        first_N=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp),
        right_N=np.array([row["labels"] for row in rows], dtype=np.intp),
    )


def _length(row: Example) -> int:
    """Tokens of an example, of its longest choice if it has several."""
    ids = row["input_ids"]
    return max(map(len, ids)) if _has_choices(row) else len(ids)


def _num_inputs(row: Example) -> int:
    return len(row["input_ids"]) if _has_choices(row) else 1


def _has_choices(row: Example) -> bool:
    return bool(row["input_ids"]) and isinstance(row["input_ids"][0], list)


def _head_input(loaded: Loaded, model: nn.Module, batch: dict[str, Tensor]) -> NDArray[np.float32]:
    """One row per input of the batch."""
    with _listening(_own_layers(loaded, model)) as heard:
        model(**batch)
    if not heard or heard[0].ndim not in (2, 3):
        raise _strange(loaded)
    seen = heard[0]
    if seen.ndim == 3:
        seen = seen[torch.arange(len(seen), device=seen.device), _places(model, batch)]
    return seen.float().cpu().numpy()


def _own_layers(loaded: Loaded, model: nn.Module) -> list[nn.Module]:
    """Layers of the task's own, in no order: all with parameters outside the body, and new ones inside it."""
    whole: Any = model
    body = whole.base_model
    heads = [
        child
        for child in model.children()
        if child is not body and next(child.parameters(), None) is not None
    ]
    return [*heads, *(model.get_submodule(name) for name in loaded.drawn)]


@contextmanager
def _listening(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The inputs of some layers, in the order in which they are called."""
    heard: list[Tensor] = []

    def hear(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))

    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(hear, with_kwargs=True)
            stack.callback(handle.remove)
        yield heard


def _places(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The token that the head reads: the first, or the last that is no padding for a causal model."""
    mask_BT = batch["attention_mask"].flatten(0, -2)
    if language_class(model.config, file=type(model).__name__)[1] == "masked":
        return torch.zeros(len(mask_BT), dtype=torch.long, device=mask_BT.device)
    counted = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return (mask_BT * counted).argmax(-1)


def _strange(loaded: Loaded) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"the head of {type(loaded.model).__name__} does not read one vector per input",
        remedy="use a model with a standard head (BERT, RoBERTa, Llama ...)",
    )
