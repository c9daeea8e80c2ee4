"""The numbers of a merge, one module in memory at a time.

Shape suffixes: O out, I in, R rank, K size of a basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.errors import UsageError, printable
from intruscope.linalg.truncated import leading
from intruscope.merge.emr import rescalers, unify
from intruscope.merge.gather import load_form, not_finite
from intruscope.merge.rules import RULES, Place, Rule, merge_space
from intruscope.merge.spaces import NULL, make_space
from intruscope.merge.trimming import global_thresholds
from intruscope.progress import OnProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intruscope.merge.emr import TaskSums, Unified
    from intruscope.merge.gather import Member, Row
    from intruscope.merge.options import MergeOptions, SpaceName
    from intruscope.merge.settings import Dtype, MergeSettings
    from intruscope.merge.spaces import Form, Space
    from intruscope.weights.stored import StoredTensor


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a module once it is merged; see :class:`intruscope.merge.records.MergedModule`."""

    update_norms: tuple[float, ...]
    merged_norm: float
    smallest_gap: float | None


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A merged update as it is written: B (O, R) and A (R, I), and ‖ΔW − B A‖_F."""

    up_OR: Tensor
    down_RI: Tensor
    error: float


class Merger:
    """Merges modules one by one; ``prepare`` finds what needs all of them first: thresholds, rescalers.

    Args:
        base: Tensors of the base, for biases and norms.
        members: The fine-tunes.
        rows: The modules to merge.
        vectors: Names of the biases and norms to merge with them.
        settings: What was asked for.
        space: Where an elementwise rule acts.
        on_progress: Called after every module, in each pass.

    Attributes:
        rescalers: Of EMR-Merging, one per fine-tune; None for other rules and before ``prepare``.
    """

    def __init__(
        self,
        base: Mapping[str, StoredTensor],
        members: Sequence[Member],
        rows: Sequence[Row],
        vectors: Sequence[str],
        settings: MergeSettings,
        *,
        space: SpaceName,
        on_progress: OnProgress,
    ) -> None:
        self.rule: Rule = RULES[settings.rule]
        self.options: MergeOptions = settings.options
        self.labels = tuple(member.label for member in members)
        self.rescalers: tuple[float, ...] | None = None
        self._base, self._members, self._rows, self._vectors = base, members, rows, vectors
        self._settings, self._space, self._on_progress = settings, space, on_progress
        self._thresholds: tuple[float, ...] | None = None

    def prepare(self) -> list[tuple[TaskSums, ...]]:
        """Look at all modules before any is merged, as far as the rule needs it.

        Returns:
            Of EMR-Merging, the sums of each module and vector; empty for other rules.

        Raises:
            MalformedInput: an update holds NaN or infinity, or a file changed.
        """
        if self.rule.trims and self.options.trim == "global":
            number = iter(range(1, 3))
            self._thresholds = global_thresholds(
                lambda: (space.parts for space in self._spaces(f"ranking entries ({next(number)} of 2)")),
                self.rule.density_of(self.options),
            )
        if not self.rule.task_specific:
            return []
        sums = [unify(space.parts, self.options).sums for space in self._spaces("comparing tasks")]
        found = rescalers(sums, self.options.rescale)
        self.rescalers = tuple(self.options.scaling * each for each in found)
        return sums

    def space(self, row: Row) -> tuple[Space, tuple[float, ...]]:
        """The updates of a module in the space of the merge, and their norms."""
        forms = [
            load_form(target, row.view, label) for target, label in zip(row.targets, self.labels, strict=True)
        ]
        space = self._space
        if not self.rule.elementwise:  # the result is the same in every space, and this one costs least
            space = "core" if row.thin else "dense"
        return make_space(forms, space=space, basis=self._settings.basis), tuple(map(norm_of, forms))

    def merged(self, row: Row) -> tuple[Form, Measured]:
        """The merged update of one module.

        Raises:
            MalformedInput: an update holds NaN or infinity, or a file changed.
        """
        space, norms = self.space(row)
        if self.rule.task_specific:
            form = space.restore(self._of_task(unify(space.parts, self.options)))
        else:
            place = Place(name=row.name, labels=self.labels, thresholds=self._thresholds)
            form = merge_space(space, self.rule, self.options, place)
        depends = self.rule.elementwise and space.name != "dense"
        gap = space.smallest_gap if depends else None
        return form, Measured(update_norms=norms, merged_norm=norm_of(form), smallest_gap=gap)

    def merged_vector(self, name: str) -> Tensor:
        """The merged update of a bias or norm, float64, flat."""
        space = self._vector_space(name)
        if self.rule.task_specific:
            form: Form = self._of_task(unify(space.parts, self.options))
        else:
            place = Place(name=name, labels=self.labels, thresholds=self._thresholds)
            form = merge_space(space, vector_rule(self.rule.name), self.options, place)
        assert isinstance(form, Tensor)
        return form.flatten()

    def unified(self, row: Row) -> tuple[Space, Unified]:
        """What EMR-Merging makes of one module, and the space it is in."""
        space, _ = self.space(row)
        return space, unify(space.parts, self.options)

    def unified_vector(self, name: str) -> Unified:
        """The same of a bias or norm."""
        return unify(self._vector_space(name).parts, self.options)

    def _of_task(self, unified: Unified) -> Tensor:
        assert self.rescalers is not None
        task = self.labels.index(str(self._settings.task))
        return unified.part(task, self.rescalers[task])

    def _vector_space(self, name: str) -> Space:
        base = self._base[name]
        size = math.prod(base.shape)
        deltas = [
            member.vectors[name].delta(base)
            if name in member.vectors
            else torch.zeros(size, dtype=torch.float64)
            for member in self._members
        ]
        for label, delta in zip(self.labels, deltas, strict=True):
            if not bool(delta.isfinite().all()):
                raise not_finite(name, label)
        return make_space([delta[None] for delta in deltas], space="dense")

    def _spaces(self, stage: str) -> Iterator[Space]:
        """One pass over everything that an elementwise rule merges."""
        total = len(self._rows) + len(self._vectors)
        for done, row in enumerate(self._rows):
            self._on_progress(Progress(stage=stage, done=done, total=total, unit="modules", item=row.name))
            yield self.space(row)[0]
        for name in self._vectors:
            yield self._vector_space(name)
        self._on_progress(Progress(stage=stage, done=total, total=total, unit="modules"))


def vector_rule(name: str) -> Rule:
    """The rule for biases and norms: a spectral one has no meaning there, and they are averaged."""
    rule = RULES[name]
    return rule if rule.elementwise or name == "sum" else RULES["mean"]


def norm_of(form: Form) -> float:
    """‖ΔW‖_F; of factors without their product."""
    if isinstance(form, Tensor):
        return float(torch.linalg.vector_norm(form))
    left_OR, right_RI = form
    core = torch.linalg.qr(left_OR, mode="r")[1] @ torch.linalg.qr(right_RI.T, mode="r")[1].T
    return float(torch.linalg.vector_norm(core))


def dense_of(form: Form) -> Tensor:
    """ΔW (O, I)."""
    return form if isinstance(form, Tensor) else form[0] @ form[1]


def factors_of(form: Form, rank: int | None, dtype: Dtype, name: str) -> Factors | None:
    """An update as factors for a file.

    Args:
        form: Of any kind, float64.
        rank: Largest rank; None for the exact one.
        dtype: Of the file.
        name: Of the module, for messages.

    Returns:
        None for an update that is zero.

    Raises:
        UsageError: a number is too large for the dtype.
    """
    bound = min(form[0].shape[1], *_shape(form)) if isinstance(form, tuple) else min(form.shape)
    wanted = bound if rank is None else min(rank, bound)
    if norm_of(form) == 0.0:
        return None
    found = leading(form, wanted, seed=0)
    kept = min(wanted, int((found.values_K > NULL * found.values_K[0]).sum()))
    up_OR, down_RI = (part.to(getattr(torch, dtype)).contiguous() for part in found.factors(kept))
    if not bool(up_OR.isfinite().all() and down_RI.isfinite().all()):
        raise UsageError(f"the factors of {printable(name)} overflow {dtype}", remedy="use --dtype float32")
    return Factors(up_OR=up_OR, down_RI=down_RI, error=_distance(form, up_OR.double(), down_RI.double()))


def _shape(form: tuple[Tensor, Tensor]) -> tuple[int, int]:
    return form[0].shape[0], form[1].shape[1]


def _distance(form: Form, up_OR: Tensor, down_RI: Tensor) -> float:
    if isinstance(form, Tensor):
        return float(torch.linalg.vector_norm(form - up_OR @ down_RI))
    return norm_of((torch.cat([form[0], -up_OR], dim=1), torch.cat([form[1], down_RI])))


def total_error(parts: Sequence[tuple[float, float]]) -> float | None:
    """√(Σ error² / Σ norm²) over modules; None where nothing was merged.

    Args:
        parts: ‖ΔW − B A‖_F and ‖ΔW‖_F of each.
    """
    square = sum(norm**2 for _, norm in parts)
    return math.sqrt(sum(error**2 for error, _ in parts) / square) if square else None
