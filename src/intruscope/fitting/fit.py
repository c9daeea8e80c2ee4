"""The fit itself: a few steps of Adam on task and general text, stopped where the choosing part is best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput
from intruscope.fitting.attach import attached
from intruscope.fitting.table import FITS
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.spectra.codec import pack_tensor, unpack_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from intruscope.adapters.live import LivePair
    from intruscope.fitting.losses import Items
    from intruscope.fitting.parts import Numbers, Part
    from intruscope.fitting.settings import FitSettings
    from intruscope.repair.edits import MatrixEdit

RIDGE = 0.1
"""Weight of the penalty Σ (factor − 1)² / windows, which matters only where windows are few."""
_NUM_LOOKS = 4
LOOK_POSITIONS = 4096
"""Token positions of the choosing part, of each kind, that a look takes."""


@dataclass(frozen=True, kw_only=True)
class FitData:
    """The items of a fit: those that are fitted, and those that decide when to stop.

    Attributes:
        task: Examples of the task.
        text: General text.
        choosing_task: Examples that are not fitted.
        choosing_text: Text that is not fitted.
    """

    task: Items
    text: Items
    choosing_task: Items
    choosing_text: Items


@dataclass(frozen=True, kw_only=True)
class Look:
    """The losses on the choosing part after some steps: per example (or token) of the task, per token."""

    step: int
    task: float
    general: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A finished fit.

    Attributes:
        fix: Name of the fix.
        weight: Of the general loss.
        numbers: The trained numbers of each part, by its key; float32, on the CPU.
        edits: What they amount to.
        num_trained: How many numbers were trained.
        looks: The choosing part during the fit.
        stopped_at: The step whose numbers were kept; 0 where no step lowered the loss.
        seconds: How long the fit took.
    """

    fix: str
    weight: float
    numbers: Mapping[str, Numbers]
    edits: tuple[MatrixEdit, ...]
    num_trained: int
    looks: tuple[Look, ...]
    stopped_at: int
    seconds: float

    def plain(self) -> dict[str, Any]:
        """Plain data, for a journal."""
        return {
            "numbers": {key: [pack_tensor(each) for each in own] for key, own in self.numbers.items()},
            "looks": [[look.step, look.task, look.general] for look in self.looks],
            "stopped_at": self.stopped_at,
            "seconds": self.seconds,
        }


def fit_from_plain(record: dict[str, Any], *, fix: str, weight: float, parts: Sequence[Part]) -> Fit:
    """The inverse of :meth:`Fit.plain`.

    Args:
        record: Plain data.
        fix: Name of the fix.
        weight: Of the general loss.
        parts: What was fitted.
    """
    numbers = {key: tuple(map(unpack_tensor, own)) for key, own in record["numbers"].items()}
    return Fit(
        fix=fix,
        weight=weight,
        numbers=numbers,
        edits=_edits(parts, numbers),
        num_trained=sum(each.numel() for own in numbers.values() for each in own),
        looks=tuple(Look(step=step, task=task, general=general) for step, task, general in record["looks"]),
        stopped_at=record["stopped_at"],
        seconds=record["seconds"],
    )


def fit(
    pair: LivePair,
    parts: Sequence[Part],
    data: FitData,
    *,
    fix: str,
    weight: float,
    settings: FitSettings,
    seed: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> Fit:
    """Lower task loss + weight x general loss over the numbers of some parts.

    Args:
        pair: A loaded pair, in its tuned state; unchanged on return.
        parts: From :func:`intruscope.fitting.parts.parts_of`.
        data: Its items; the same batches for every fix, weight and part.
        fix: Name in :data:`intruscope.fitting.table.FITS`.
        weight: Of the general loss.
        settings: Steps and batches.
        seed: Random seed of the batches.
        on_progress: Called before the first step and after each.

    Raises:
        MalformedInput: a loss became NaN.
        UnsupportedFormat: a matrix that is not the weight of a linear layer.
        ResourceExhausted: a batch does not fit on the device.

    Numerics: numbers, thin products and Adam in float32, whatever the model's dtype.
    """
    import torch

    started = time.perf_counter()
    device = pair.language_model().model.device
    numbers: dict[str, Numbers] = {
        part.key: tuple(each.clone().to(device).requires_grad_() for each in part.start()) for part in parts
    }
    trained = [each for own in numbers.values() for each in own]
    optimizer = torch.optim.Adam(trained, lr=FITS[fix].learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / settings.fit_steps)
    penalty = 0.0 if fix == "replay" else RIDGE / min(len(data.task.sizes), len(data.text.sizes))
    batches = [
        _batches(items.sizes, settings.fit_tokens, torch.Generator().manual_seed(2 * seed + place))
        for place, items in enumerate((data.task, data.text))
    ]
    # Looks at the start, so that a fit is never worse than none on the choosing part, and at the end.
    look_after = {round(settings.fit_steps * each / _NUM_LOOKS) for each in range(1, _NUM_LOOKS + 1)}

    def report(step: int) -> None:
        on_progress(
            Progress(
                stage="fitting",
                done=step,
                total=settings.fit_steps,
                unit="steps",
                item=f"{fix}, weight {weight:g}",
            )
        )

    report(0)
    with attached(pair, parts, numbers):
        looks = [_look(data, 0)]
        best, kept = _total(looks[0], weight), _copied(numbers)
        stopped_at = 0
        for step in range(1, settings.fit_steps + 1):
            optimizer.zero_grad(set_to_none=True)
            for items, batch, factor in zip((data.task, data.text), batches, (1.0, weight), strict=True):
                nats, units = items.nats(next(batch))
                loss = factor * nats / units
                if not bool(torch.isfinite(loss)):
                    raise MalformedInput(
                        f"the loss became {float(loss)} at step {step} of the fit {fix}, weight {weight:g}",
                        remedy="look for non-finite weights with intruscope scan; with float16, try --dtype "
                        "float32",
                    )
                loss.backward()  # type: ignore[no-untyped-call]
            if penalty:
                (penalty * sum((each - 1.0).square().sum() for each in trained)).backward()  # type: ignore[union-attr]
            optimizer.step()
            scheduler.step()
            if step in look_after:
                looks.append(_look(data, step))
                if _total(looks[-1], weight) < best:
                    best, kept, stopped_at = _total(looks[-1], weight), _copied(numbers), step
            report(step)
    return Fit(
        fix=fix,
        weight=weight,
        numbers=kept,
        edits=_edits(parts, kept),
        num_trained=sum(each.numel() for each in trained),
        looks=tuple(looks),
        stopped_at=stopped_at,
        seconds=time.perf_counter() - started,
    )


def _edits(parts: Sequence[Part], numbers: Mapping[str, Numbers]) -> tuple[MatrixEdit, ...]:
    return tuple(edit for part in parts for edit in part.edits(numbers[part.key]))


def _copied(numbers: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {key: tuple(each.detach().cpu().clone() for each in own) for key, own in numbers.items()}


def _total(look: Look, weight: float) -> float:
    return look.task + weight * look.general


def _look(data: FitData, step: int) -> Look:
    task, general = (_mean(items) for items in (data.choosing_task, data.choosing_text))
    return Look(step=step, task=task, general=general)


def _mean(items: Items) -> float:
    import torch

    chosen = items.limited(LOOK_POSITIONS)
    total, num_units = 0.0, 0
    with torch.no_grad():
        for batch in _packed(chosen, items.sizes, LOOK_POSITIONS // 4):
            nats, units = items.nats(batch)
            total, num_units = total + float(nats), num_units + units
    return total / num_units


def _batches(sizes: Sequence[int], budget: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of items in random order, each item once before any comes again."""
    import torch

    while True:
        yield from _packed(torch.randperm(len(sizes), generator=generator).tolist(), sizes, budget)


def _packed(order: Sequence[int], sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Items in their order, as many at a time as the padded batch has room for, and at least one."""
    batch: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, sizes[index])
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch, longest = [], sizes[index]
        batch.append(index)
    if batch:
        yield batch
