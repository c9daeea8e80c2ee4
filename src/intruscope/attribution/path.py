"""The line integral of the gradient from base to tuned weights, contracted with every part of the update.

A loss L changes along the straight path W(s) = base + s ΔW by

    L(tuned) − L(base) = ∫₀¹ ⟨∇L(W(s)), ΔW⟩ ds.

The integrand is linear in ΔW, so the change splits exactly over any parts that add up to ΔW, and nothing is
fitted. The integral is taken by Gauss-Legendre quadrature. Source: integrated gradients (Sundararajan et al.,
ICML 2017, arXiv 1703.01365), over weights instead of inputs.

Shape suffixes: G groups, P parts (columns of the table).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import MalformedInput, ResourceExhausted
from intruscope.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from intruscope.adapters.live import LivePair
    from intruscope.attribution.parts import ParameterPart
    from intruscope.fitting.losses import Items
    from intruscope.progress import OnProgress

POINTS = (4, 8, 16, 32)
"""Points of the quadrature; the next number is tried where the parts do not add up. The loss of a few
sequences can be rough along the path (LOG.md, 2026-12-01); over many sequences this averages out."""
TOLERANCE = 0.01
"""Largest difference of attributed and measured, as a fraction of measured."""
ROUNDING = 1e-5
"""A difference below this fraction of the loss is rounding of float32, however little was measured."""
MAX_GROUPS = 64
"""Most groups of sequences whose gradients are kept apart. Each costs a product with every part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PathIntegral:
    """What each part adds to the loss.

    Attributes:
        parts_GP: Nats that each part adds to the summed loss of each group of sequences.
        units_G: Scored tokens, or examples, of each group.
        change_G: Tuned minus base of each group's summed loss, measured.
        base_loss: The base's loss in nats per unit.
        num_points: Points of the quadrature.
        num_sequences: Sequences or examples.
    """

    parts_GP: NDArray[np.float64]
    units_G: NDArray[np.int64]
    change_G: NDArray[np.float64]
    base_loss: float
    num_points: int
    num_sequences: int

    @property
    def measured(self) -> float:
        """Tuned loss minus base loss, in nats per unit."""
        return float(self.change_G.sum() / self.units_G.sum())

    def attributed(self, columns: Sequence[int]) -> float:
        """The same, as the sum of parts that together are the whole update."""
        return float(self.parts_GP[:, list(columns)].sum() / self.units_G.sum())

    def is_complete(self, columns: Sequence[int]) -> bool:
        """Whether these parts add up to what was measured."""
        allowed = max(TOLERANCE * abs(self.measured), ROUNDING * abs(self.base_loss))
        return abs(self.attributed(columns) - self.measured) <= allowed


class PathLoss:
    """A loss of a live pair, on groups of its items.

    Args:
        pair: The loaded pair.
        items: Sequences or examples, with the loss on any of them.
        batch_tokens: Maximum number of token positions per batch.
        name: What is measured, for progress and errors.
        on_progress: Called after each batch, in token positions.
    """

    def __init__(
        self, pair: LivePair, items: Items, *, batch_tokens: int, name: str, on_progress: OnProgress
    ) -> None:
        self._pair = pair
        self._items = items
        self._name = name
        self._on_progress = on_progress
        self._groups = groups_of(items, batch_tokens)
        self._sizes = items.sizes
        self._num_positions = sum(self._sizes)

    def integral(self, parts: Sequence[ParameterPart]) -> PathIntegral:
        """Attribute the change of this loss to the parts, with as many points as they need to add up.

        Args:
            parts: Every changed parameter.

        Raises:
            MalformedInput: a loss or a gradient is not finite.
            ResourceExhausted: a batch does not fit on the device.
        """
        wholes = [part.column for part in parts]
        base_G, units_G = self._measured(self._pair.as_base, "base")
        tuned_G, _ = self._measured(self._pair.as_tuned, "tuned")
        found = None
        for num_points in POINTS:
            found = PathIntegral(
                parts_GP=self._integrated(parts, num_points),
                units_G=units_G,
                change_G=tuned_G - base_G,
                base_loss=float(base_G.sum() / units_G.sum()),
                num_points=num_points,
                num_sequences=len(set(self._items.owners)),
            )
            if found.is_complete(wholes):
                break
        assert found is not None
        return found

    def _measured(
        self, state: Callable[[], Any], stage: str
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Summed loss and units of each group, in one state of the pair."""
        import torch

        nats_G, units_G = np.zeros(len(self._groups)), np.zeros(len(self._groups), dtype=np.int64)
        with state(), torch.no_grad():
            for group, loss, units in self._losses(stage, 1, 0):
                nats_G[group] += float(loss)
                units_G[group] += units
        return nats_G, units_G

    def _integrated(self, parts: Sequence[ParameterPart], num_points: int) -> NDArray[np.float64]:
        """(G, P): nats that each part adds to each group."""
        places, weights = np.polynomial.legendre.leggauss(num_points)
        found_GP = np.zeros((len(self._groups), sum(part.num_columns for part in parts)))
        for point, (place, weight) in enumerate(zip(places, weights, strict=True)):
            with self._pair.interpolated(float(place + 1) / 2), _contracting(parts) as row_P:
                for group, loss, _ in self._losses("path", num_points, point):
                    row_P[:] = 0.0
                    self._backward(loss)
                    found_GP[group] += float(weight) / 2 * row_P
        if not np.isfinite(found_GP).all():
            raise MalformedInput(
                f"the gradient of the {self._name} is not finite",
                remedy="try --dtype float32",
                file=self._pair.description[1],
            )
        return found_GP

    def _losses(self, stage: str, num_passes: int, passed: int) -> Iterator[tuple[int, torch.Tensor, int]]:
        """Group, summed loss and units of each batch."""
        progress = Progress(
            stage=f"{self._name}, {stage}",
            done=passed * self._num_positions,
            total=num_passes * self._num_positions,
            unit="tokens",
        )
        for group, batches in enumerate(self._groups):
            for batch in batches:
                loss, units = self._items.nats(batch)
                if not bool(loss.detach().isfinite()):
                    raise MalformedInput(
                        f"the {self._name} is {float(loss)}",
                        remedy="look for non-finite weights with intruscope scan; with float16, try "
                        "--dtype float32",
                        file=self._pair.description[1],
                    )
                yield group, loss, units
                progress = replace(progress, done=progress.done + sum(self._sizes[i] for i in batch))
                self._on_progress(progress)

    def _backward(self, loss: torch.Tensor) -> None:
        import torch

        if not loss.requires_grad:  # it depends on nothing that the fine-tune changed
            return
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceExhausted(
                f"not enough memory on {loss.device} for the gradients of a batch",
                remedy="lower --batch-tokens, or choose another --device",
            ) from error


@contextmanager
def _contracting(parts: Sequence[ParameterPart]) -> Iterator[NDArray[np.float64]]:
    """In this context each backward pass adds its products with all parts to a row, and keeps no gradient.

    A gradient is contracted as soon as it is whole and dropped at once, so that few exist at the same time.
    """
    row_P = np.zeros(sum(part.num_columns for part in parts))
    handles = []

    def receiver(part: ParameterPart) -> Callable[[torch.Tensor], None]:
        columns = slice(part.column, part.column + part.num_columns)

        def receive(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            row_P[columns] += part.products(parameter.grad).numpy()
            parameter.grad = None

        return receive

    try:
        for part in parts:
            parameter: Any = part.changed.parameter
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(receiver(part)))
        yield row_P
    finally:
        for handle in handles:
            handle.remove()
        for part in parts:
            part.changed.parameter.requires_grad_(False)
            part.changed.parameter.grad = None


def groups_of(items: Items, batch_tokens: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Items in batches, and batches in groups of whole sequences: the unit of the bootstrap.

    Where there are more sequences than groups, neighbours share one: they may have something in common.

    Args:
        items: Sequences or examples.
        batch_tokens: Maximum number of token positions per batch, including padding.
    """
    sizes, owners = items.sizes, items.owners
    by_owner: dict[int, list[int]] = {}
    for index, owner in enumerate(owners):
        by_owner.setdefault(owner, []).append(index)
    names = sorted(by_owner)
    groups = np.array_split(np.array(names), min(MAX_GROUPS, len(names)))
    found = []
    for group in groups:
        members = [index for owner in group for index in by_owner[int(owner)]]
        members.sort(key=lambda index: -sizes[index])
        batches: list[list[int]] = []
        for index in members:
            if batches and (len(batches[-1]) + 1) * sizes[batches[-1][0]] <= batch_tokens:
                batches[-1].append(index)
            else:
                batches.append([index])
        found.append(tuple(map(tuple, batches)))
    return tuple(found)
