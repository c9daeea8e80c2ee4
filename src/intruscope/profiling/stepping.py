"""Training steps on random tokens, and the time of their parts.

A step is what a Trainer does with one batch: the forward pass with its loss, the backward pass, the
optimiser's step with what the method does around it, and the gradients dropped. Left out are the loading of
data, logging and the schedule of the rate, which cost all settings the same, and clipping, which costs the
more the more is trained.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import TrainerControl, TrainerState

from intruscope.profiling.records import Phases
from intruscope.train.encoding import MASKED_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer
    from transformers import TrainerCallback

    from intruscope.profiling.records import HeadKind, Shape

    Batch = Mapping[str, torch.Tensor]

TOTAL_STEPS = 10_000
"""Of the run that the steps are taken to be the middle of, for methods with a schedule: AdaLoRA prunes there,
and a chain is between two links."""
RATE = 1e-5
"""Learning rate: small, so that nothing runs away on random tokens; the arithmetic is that of any other."""


class Steps(Protocol):
    """What can be timed."""

    def forward(self, batch: Batch) -> None:
        """The loss of a batch."""

    def backward(self) -> None:
        """Its gradients."""

    def update(self) -> None:
        """The optimiser's step, and the gradients dropped."""

    def synchronize(self) -> None:
        """Wait for the device."""


def timed_step(steps: Steps, batch: Batch, clock: Callable[[], float]) -> Phases:
    """One step, and the seconds of its parts; the device is waited for between them."""
    steps.synchronize()
    times = [clock()]
    parts: tuple[Callable[[], None], ...] = (lambda: steps.forward(batch), steps.backward, steps.update)
    for part in parts:
        part()
        steps.synchronize()
        times.append(clock())
    return Phases(*(after - before for before, after in pairwise(times)))


class TrainingSteps:
    """Steps of a model with a method on it.

    Args:
        model: In training mode already.
        optimizer: Of what is trained.
        callbacks: The method's.
        device: Where the model is.
        bf16: The forward pass runs in bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        callbacks: Sequence[TrainerCallback],
        *,
        device: str,
        bf16: bool,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._callbacks = list(callbacks)
        self._device = torch.device(device)
        self._bf16 = bf16
        self._loss: torch.Tensor | None = None
        self._control = TrainerControl()
        self._state = TrainerState(max_steps=TOTAL_STEPS, global_step=TOTAL_STEPS // 2)
        self._notify("on_train_begin")

    def forward(self, batch: Batch) -> None:
        """The loss of a batch."""
        self._notify("on_step_begin")
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            self._loss = self._model(**batch).loss

    def backward(self) -> None:
        """Its gradients."""
        assert self._loss is not None
        self._loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """The optimiser's step with the method's, in the order of transformers' Trainer."""
        self._notify("on_pre_optimizer_step")
        self._optimizer.step()
        self._notify("on_optimizer_step")
        self._optimizer.zero_grad(set_to_none=True)
        self._state.global_step += 1
        self._notify("on_step_end")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def held(self) -> Iterator[torch.Tensor]:
        """Every tensor that stays from step to step."""
        yield from self._model.parameters()
        yield from self._model.buffers()
        for state in self._optimizer.state.values():
            yield from (each for each in state.values() if isinstance(each, torch.Tensor))

    @property
    def loss(self) -> float:
        """Of the last step."""
        assert self._loss is not None
        return float(self._loss.detach())

    def _notify(self, event: str) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(
                None, self._state, self._control, model=self._model, optimizer=self._optimizer
            )


def random_batches(
    config: Any, head: HeadKind, shape: Shape, *, device: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Batches without end: every token of the vocabulary alike, no padding.

    Args:
        config: transformers', for the sizes.
        head: What the loss is of.
        shape: Of a batch.
        device: Where they go.
        seed: The same for all settings.

    Yields:
        Arguments of the model. Of a masked model the loss is of 15% of the tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    words = config.get_text_config().vocab_size
    while True:
        ids = torch.randint(0, words, shape, generator=generator)
        if head == "classifier" and config.num_labels == 1:  # a regression
            labels = torch.rand(shape.batch, generator=generator)
        elif head == "classifier":
            labels = torch.randint(0, config.num_labels, (shape.batch,), generator=generator)
        elif head == "masked":
            labels = ids.masked_fill(torch.rand(shape, generator=generator) >= MASKED_SHARE, -100)
            labels[:, 0] = ids[:, 0]  # a batch without any would have no loss
        else:
            labels = ids
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        yield {name: tensor.to(device) for name, tensor in batch.items()}
