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
from intruscope.linalg.forms import shape_of
from intruscope.linalg.overlap import inner_product
from intruscope.linalg.truncated import leading, left_squares
from intruscope.merge.emr import rescalers, unify
from intruscope.merge.gather import load_form, not_finite
from intruscope.merge.rules import RULES, Place, Rule, merge_space
from intruscope.merge.spaces import NULL, make_space
from intruscope.merge.trimming import global_thresholds
from intruscope.progress import OnProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intruscope.linalg.forms import Form
    from intruscope.merge.emr import TaskSums, Unified
    from intruscope.merge.gather import Member, Row
    from intruscope.merge.options import MergeOptions, SpaceName
    from intruscope.merge.settings import Dtype, MergeSettings
    from intruscope.merge.spaces import Space
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

    def space(self, row: Row, forms: Sequence[Form] | None = None) -> Space:
        """The updates of a module in the space of the merge.

        Args:
            row: The module.
            forms: Its updates, where they are read already.
        """
        forms = self._forms(row) if forms is None else forms
        space = self._space
        if not self.rule.elementwise:  # the result is the same in every space, and this one costs least
            space = "core" if row.thin else "dense"
        return make_space(forms, space=space, basis=self._settings.basis)

    def merged(self, row: Row) -> tuple[Form, Measured]:
        """The merged update of one module.

        Raises:
            MalformedInput: an update holds NaN or infinity, or a file changed.
        """
        forms = self._forms(row)
        form: Form
        gap = None
        pairs = [each for each in forms if isinstance(each, tuple)]
        if len(pairs) == len(forms) and self.rule.name in ("sum", "mean"):
            form = self._side_by_side(pairs)
        else:
            space = self.space(row, forms)
            if self.rule.task_specific:
                form = space.restore(self._of_task(unify(space.parts, self.options)))
            else:
                place = Place(name=row.name, labels=self.labels, thresholds=self._thresholds)
                form = merge_space(space, self.rule, self.options, place)
            if self.rule.elementwise and space.name != "dense":
                gap = space.smallest_gap
        norms = tuple(map(_norm, forms))
        return form, Measured(update_norms=norms, merged_norm=_norm(form), smallest_gap=gap)

    def _forms(self, row: Row) -> list[Form]:
        return [
            load_form(each, row.view, label) for each, label in zip(row.targets, self.labels, strict=True)
        ]

    def _side_by_side(self, forms: Sequence[tuple[Tensor, Tensor]]) -> Form:
        """The factors of a linear rule: those of all fine-tunes joined, times what the rule makes of ones."""
        assert self.rule.merge is not None
        ones = torch.eye(len(forms), dtype=torch.float64)
        weights = self.rule.merge([row[None] for row in ones], self.options, Place())[0]
        left_OR = torch.cat([weight * left for weight, (left, _) in zip(weights, forms, strict=True)], dim=1)
        return left_OR, torch.cat([right for _, right in forms])

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
        space = self.space(row)
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
            yield self.space(row)
        for name in self._vectors:
            yield self._vector_space(name)
        self._on_progress(Progress(stage=stage, done=total, total=total, unit="modules"))


def vector_rule(name: str) -> Rule:
    """The rule for biases and norms: a spectral one has no meaning there, and they are averaged."""
    rule = RULES[name]
    return rule if rule.elementwise or name == "sum" else RULES["mean"]


def _norm(form: Form) -> float:
    """‖ΔW‖_F."""
    return math.sqrt(max(inner_product(form, form), 0.0))


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
    bound = min(*shape_of(form), *([form[0].shape[1]] if isinstance(form, tuple) else []))
    wanted = bound if rank is None else min(rank, bound)
    found = leading(form, wanted, seed=0)
    if found.total_square == 0.0:
        return None
    kept = min(wanted, int((found.values_K > NULL * found.values_K[0]).sum()))
    exact_OR, exact_RI = found.factors(kept)
    up_OR, down_RI = (part.to(getattr(torch, dtype)).contiguous() for part in (exact_OR, exact_RI))
    if not bool(up_OR.isfinite().all() and down_RI.isfinite().all()):
        raise UsageError(f"the factors of {printable(name)} overflow {dtype}", remedy="use --dtype float32")
    if isinstance(form, Tensor):
        error = float(torch.linalg.vector_norm(form - up_OR.double() @ down_RI.double()))
    else:
        left = left_squares(found.values_K, found.total_square, complete=found.complete)
        error = math.hypot(math.sqrt(float(left[kept])), _rounding((exact_OR, exact_RI), (up_OR, down_RI)))
    return Factors(up_OR=up_OR, down_RI=down_RI, error=error)


def _rounding(exact: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> float:
    """‖B A − B̂ Â‖_F = ‖(B − B̂) A + B̂ (A − Â)‖_F: a sum of small products, in which nothing cancels."""
    (up, down), (rounded_up, rounded_down) = exact, (stored[0].double(), stored[1].double())
    return _norm((torch.cat([up - rounded_up, rounded_up], 1), torch.cat([down, down - rounded_down])))


def total_error(parts: Sequence[tuple[float, float]]) -> float | None:
    """√(Σ error² / Σ norm²) over modules; None where nothing was merged.

    Args:
        parts: ‖ΔW − B A‖_F and ‖ΔW‖_F of each.
    """
    square = sum(norm**2 for _, norm in parts)
    return math.sqrt(sum(error**2 for error, _ in parts) / square) if square else None
