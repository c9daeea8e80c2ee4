"""Rules that merge the updates of several fine-tunes, one pure function each.

A rule takes the parts of a space (:mod:`intruscope.merge.spaces`), one float64 array per fine-tune, and makes
one array of the same shape. Rules that are not elementwise give the same update in every space; elementwise
ones depend on it.

To add a rule: one function, and its entry in :data:`RULES`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from intruscope.errors import UsageError, nearest, printable
from intruscope.merge.spaces import NULL, numerical_rank
from intruscope.merge.trimming import global_thresholds, matrix_thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from intruscope.linalg.forms import Form
    from intruscope.merge.options import MergeOptions, RuleName, SpaceName
    from intruscope.merge.spaces import Space

_ABSENT = 1e-6
"""A fine-tune whose share of a direction is below this fraction of the merged one has no part in it (svc)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a rule may need to know about the matrix besides the parts.

    Attributes:
        name: Of the matrix; part of the seed of ``dare_ties``.
        labels: Of the fine-tunes; part of the seed of ``dare_ties``. By default their positions.
        shape: (O, I) of the updates; by default the shape of the parts.
        thresholds: For each fine-tune, the smallest magnitude that TIES keeps, where entries are ranked over
            all matrices; by default entries are ranked within the parts.
        left_values_K: Singular values of the space's left basis; by default they are computed from the parts.
    """

    name: str = ""
    labels: tuple[str, ...] = ()
    shape: tuple[int, int] | None = None
    thresholds: tuple[float, ...] | None = None
    left_values_K: Tensor | None = None


_ANYWHERE = Place()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way to merge.

    Attributes:
        name: As on the command line.
        title: In a few words.
        source: Where it is published.
        merge: The function; None for ``emr``, whose result is not one update (:mod:`intruscope.merge.emr`).
        elementwise: Acts on single entries, nonlinearly: the result depends on the space. Every other
            rule gives the same update in every space (``pico`` only of the bases ``update`` and ``qr``).
        task_specific: The result is one model per task, which must be known at inference.
        trims: Keeps the largest entries, and so needs thresholds over all matrices by default.
        space: The only space that the rule is defined in; None for any.
        density: Default of ``MergeOptions.density``; None where it is not used.
        uses: The fields of ``MergeOptions`` that have an effect, besides ``weights`` and ``scaling``.
    """

    name: RuleName
    title: str
    source: str
    merge: Callable[[Sequence[Tensor], MergeOptions, Place], Tensor] | None
    elementwise: bool = False
    task_specific: bool = False
    trims: bool = False
    space: SpaceName | None = None
    density: float | None = None
    uses: tuple[str, ...] = ()

    def density_of(self, options: MergeOptions) -> float:
        """The fraction of entries that is kept: as given, or the rule's default, or all."""
        given = self.density if options.density is None else options.density
        return 1.0 if given is None else given


def rule_named(name: str) -> Rule:
    """The rule of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in RULES:
        raise UsageError(
            f"there is no merge rule {printable(name)}",
            remedy=nearest(name, RULES, what="rule") or f"use one of {', '.join(RULES)}",
        )
    return RULES[name]


def merge_space(space: Space, rule: Rule, options: MergeOptions, at: Place = _ANYWHERE) -> Form:
    """Merge one matrix.

    Args:
        space: Its updates.
        rule: Any that makes one update.
        options: The numbers that the rule takes.
        at: Name, labels and thresholds; shape and singular values are those of the space.

    Returns:
        Factors or the update itself, as :meth:`Space.restore` gives them.

    Raises:
        UsageError: the rule makes one update per task or needs another space, or the weights do not fit.
    """
    if rule.merge is None:
        raise UsageError(
            f"{rule.name} makes one update per task, not one for all", remedy="use intruscope.merge.emr"
        )
    if rule.space not in (None, space.name):
        raise UsageError(f"the rule {rule.name} needs the space {rule.space}", remedy="make that space")
    here = replace(at, shape=space.shape, left_values_K=space.left_values_K)
    return space.restore(rule.merge(space.parts, replace(options, density=rule.density_of(options)), here))


def merge_matrices(
    spaces: Callable[[], Iterable[tuple[str, Space]]],
    rule: Rule,
    options: MergeOptions,
    *,
    labels: tuple[str, ...] = (),
) -> Iterator[tuple[str, Form]]:
    """Merge many matrices, one in memory at a time.

    Args:
        spaces: Starts one pass over the names and spaces of all matrices. It is called once, or three times
            for a rule that trims over all matrices together.
        rule: Any that makes one update.
        options: The numbers that the rule takes.
        labels: Of the fine-tunes.

    Yields:
        The name and the merged update of each matrix, in the order of the pass.

    Raises:
        UsageError: as in :func:`merge_space`.
    """
    thresholds = None
    if rule.trims and options.trim == "global":
        thresholds = global_thresholds(
            lambda: (space.parts for _, space in spaces()), rule.density_of(options)
        )
    for name, space in spaces():
        yield name, merge_space(space, rule, options, Place(name=name, labels=labels, thresholds=thresholds))


def weights_of(options: MergeOptions, count: int) -> tuple[float, ...]:
    """One weight per fine-tune.

    Raises:
        UsageError: there are more or fewer.
    """
    if options.weights is None:
        return (1.0,) * count
    if len(options.weights) != count:
        raise UsageError(
            f"there are {len(options.weights)} weights for {count} updates",
            remedy="give one weight per fine-tune",
        )
    return options.weights


# --- linear ----------------------------------------------------------------------------------------


def merge_sum(parts: Sequence[Tensor], options: MergeOptions, _at: Place = _ANYWHERE) -> Tensor:
    """``lambda Σ w_t ΔW_t``: task arithmetic."""
    return options.scaling * _total(_weighted(parts, options))


def merge_mean(parts: Sequence[Tensor], options: MergeOptions, _at: Place = _ANYWHERE) -> Tensor:
    """``lambda Σ w_t ΔW_t / Σ w_t``.

    Raises:
        UsageError: the weights sum to 0.
    """
    weights = weights_of(options, len(parts))
    total = sum(weights)
    if abs(total) <= NULL * max(map(abs, weights)):
        raise UsageError("the weights sum to 0: there is no mean", remedy="change them, or use the rule sum")
    return options.scaling / total * _total(_weighted(parts, options))


def _weighted(parts: Sequence[Tensor], options: MergeOptions) -> list[Tensor]:
    weights = weights_of(options, len(parts))
    return [weight * part for weight, part in zip(weights, parts, strict=True)]


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


# --- elementwise -----------------------------------------------------------------------------------


def merge_ties(parts: Sequence[Tensor], options: MergeOptions, at: Place = _ANYWHERE) -> Tensor:
    """TIES: trim, elect signs, average what agrees.

    Each part keeps its largest entries (all where ``density`` is None). The sign of an entry is that of the
    weighted sum of what was kept. The result is the sum of the weighted entries of that sign over the sum of
    their ``|w_t|``, times lambda.

    Source: arXiv 2306.01708, Algorithm 1. Differs from released code in: an entry whose kept values cancel
        exactly becomes 0 there, not the mean of those that have the majority sign of the whole vector, which
        would depend on the signs of singular vectors.
    """
    thresholds = at.thresholds or matrix_thresholds(parts, _density(options))
    kept = [
        torch.where(part.abs() >= threshold, part, 0.0)
        for part, threshold in zip(parts, thresholds, strict=True)
    ]
    return _disjoint_mean(kept, options)


def merge_dare_ties(parts: Sequence[Tensor], options: MergeOptions, at: Place = _ANYWHERE) -> Tensor:
    """DARE, then TIES without trimming.

    Each entry is kept with the probability ``density`` and divided by it. The choice depends on the seed, the
    name of the matrix and the label of the fine-tune, not on their order.

    Source: arXiv 2311.03099, section 3; combined with TIES as in arXiv 2410.19735, whose settings trim
        nothing after DARE.
    """
    density = _density(options)
    labels = at.labels or tuple(map(str, range(len(parts))))
    kept = [
        torch.where(_chosen(part, density, (options.seed, at.name, label)), part / density, 0.0)
        for part, label in zip(parts, labels, strict=True)
    ]
    return _disjoint_mean(kept, options)


def _density(options: MergeOptions) -> float:
    return 1.0 if options.density is None else options.density


def _chosen(part: Tensor, density: float, key: tuple[int, str, str]) -> Tensor:
    digest = hashlib.sha256("\0".join(map(str, (*key, "dare"))).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return (torch.rand(part.shape, generator=generator, dtype=torch.float64) < density).to(part.device)


def elected_signs(parts: Sequence[Tensor]) -> Tensor:
    """The sign of the sum of each entry; 0 where the sum is a rounding error, whose sign the order decides.

    Args:
        parts: One array per fine-tune, weighted.
    """
    total, size = _total(parts), _total([part.abs() for part in parts])
    rounding = len(parts) * torch.finfo(total.dtype).eps * size
    return torch.where(total.abs() > rounding, torch.sign(total), 0.0)


def _disjoint_mean(kept: Sequence[Tensor], options: MergeOptions) -> Tensor:
    weights = weights_of(options, len(kept))
    elected = elected_signs(_weighted(kept, options))
    merged, agreeing = torch.zeros_like(elected), torch.zeros_like(elected)
    for weight, part in zip(weights, kept, strict=True):
        weighted = weight * part
        agrees = weighted * elected > 0.0
        merged += torch.where(agrees, weighted, 0.0)
        agreeing += abs(weight) * agrees
    return options.scaling * torch.where(agreeing > 0.0, merged / agreeing, 0.0)


# --- spectral --------------------------------------------------------------------------------------


def merge_tsv(parts: Sequence[Tensor], options: MergeOptions, at: Place = _ANYWHERE) -> Tensor:
    """TSV-M: leading singular triplets of each task, decorrelated.

    The leading ``min(O, I) / T`` left (and right) singular vectors of all tasks are made orthonormal together
    by the polar factor; the singular values stay.

    Source: arXiv 2412.00081, Algorithm 1. Differs from it in: no more triplets per task than its rank, so
        that null directions of low-rank updates do not enter; null directions of the joined vectors
        (tasks that share a vector exactly) add nothing.
    """
    limit = max(1, min(at.shape or parts[0].shape) // len(parts))
    lefts, values, rights = [], [], []
    for part in _weighted(parts, options):
        left, value, right_t = torch.linalg.svd(part, full_matrices=False)
        kept = min(numerical_rank(value), limit)
        lefts.append(left[:, :kept])
        values.append(value[:kept])
        rights.append(right_t[:kept].T)
    left, right = _polar(torch.cat(lefts, dim=1)), _polar(torch.cat(rights, dim=1))
    return options.scaling * (left * torch.cat(values)) @ right.T


def _polar(vectors: Tensor) -> Tensor:
    """The closest matrix with orthonormal columns (rows where there are more columns), within its range."""
    left, values, right_t = torch.linalg.svd(vectors, full_matrices=False)
    kept = numerical_rank(values)
    factor: Tensor = left[:, :kept] @ right_t[:kept]
    return factor


def merge_iso(parts: Sequence[Tensor], options: MergeOptions, _at: Place = _ANYWHERE) -> Tensor:
    """Iso-C: the sum with all its singular values replaced by their mean.

    Source: arXiv 2502.04959, section 4. Differs from it in: the mean is over the rank of the sum, not over
        min(O, I), which would fill the null directions of low-rank updates.
    """
    left, values, right_t = _sum_svd(parts, options)
    return options.scaling * (values.mean() if len(values) else 0.0) * (left @ right_t)


def merge_svc(parts: Sequence[Tensor], options: MergeOptions, _at: Place = _ANYWHERE) -> Tensor:
    """Singular value calibration: divide each singular value of the sum by how often it was counted.

    For the left singular vector u_r of the sum W, ``a = u_rᵀ W`` and ``a_i = u_rᵀ ΔW_i``, the overlap factor
    of fine-tune i is ``<a, a_i> / <a_i, a_i>``, at least ``floor``; the divisor is the mean over i.

    Source: arXiv 2602.05536, section 4. Differs from released code in: float64; the factor is ``floor`` where
        ``|a_i| < 1e-6 |a|``, where it would be a ratio of rounding errors.
    Numerics: ambiguous where singular values of the sum coincide, because the formula is stated in their
        vectors.
    """
    left, values, right_t = _sum_svd(parts, options)
    along = values[:, None] * right_t
    divisor = torch.zeros_like(values)
    for part in _weighted(parts, options):
        own = left.T @ part
        square = own.square().sum(dim=1)
        present = square.sqrt() >= _ABSENT * values
        factor = torch.where(present, (along * own).sum(dim=1) / square, options.floor)
        divisor += factor.clamp(min=options.floor) / len(parts)
    return options.scaling * (left * (values / divisor)) @ right_t


def _sum_svd(parts: Sequence[Tensor], options: MergeOptions) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right_t = torch.linalg.svd(_total(_weighted(parts, options)), full_matrices=False)
    kept = numerical_rank(values)
    return left[:, :kept], values[:kept], right_t[:kept]


def merge_pico(parts: Sequence[Tensor], options: MergeOptions, at: Place = _ANYWHERE) -> Tensor:
    """Pico: turn down output directions that many fine-tunes use, add up, restore the mean norm.

    With U, S from the SVD of the joined updates and ``p = S² / Σ S²``, each update is multiplied from the
    left by ``U diag(1 / (1 + (T - 1) p)) Uᵀ``. Their weighted sum is scaled to the mean Frobenius norm of the
    weighted updates, and by lambda.

    Source: arXiv 2604.16826, section 4. Differs from it in: U and S are those of ``[ΔW_1 | ... | ΔW_T]``, so
        that the result does not depend on how an adapter is factored. In a space of the basis ``official``
        they are those of the joined B_t, as published.
    """
    weighted = _weighted(parts, options)
    count = len(parts)
    if at.left_values_K is not None:
        shares = at.left_values_K.square()[:, None]
        calibrate = 1.0 / (1.0 + (count - 1) * shares / shares.sum()) if len(shares) else shares
        merged = calibrate * _total(weighted)
    else:
        left, values, _ = torch.linalg.svd(torch.cat(list(parts), dim=1), full_matrices=False)
        kept = numerical_rank(values)
        left, shares = left[:, :kept], values[:kept, None].square()
        calibrate = 1.0 / (1.0 + (count - 1) * shares / shares.sum())
        merged = left @ (calibrate * (left.T @ _total(weighted)))
    norm = float(torch.linalg.matrix_norm(merged))
    wanted = sum(float(torch.linalg.matrix_norm(part)) for part in weighted) / count
    return options.scaling * (wanted / norm if norm > 0.0 else 1.0) * merged


# --- the table -------------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    each.name: each
    for each in (
        Rule(
            name="sum",
            title="weighted sum (task arithmetic)",
            source="Ilharco et al. 2023, arXiv 2212.04089",
            merge=merge_sum,
        ),
        Rule(
            name="mean",
            title="weighted mean",
            source="Wortsman et al. 2022, arXiv 2203.05482",
            merge=merge_mean,
        ),
        Rule(
            name="ties",
            title="TIES: trim, elect signs, average what agrees",
            source="Yadav et al. 2023, arXiv 2306.01708",
            merge=merge_ties,
            elementwise=True,
            trims=True,
            density=0.2,  # K = 20 of the paper
            uses=("density", "trim"),
        ),
        Rule(
            name="dare_ties",
            title="DARE (random dropping), then TIES",
            source="Yu et al. 2024, arXiv 2311.03099",
            merge=merge_dare_ties,
            elementwise=True,
            density=0.9,  # p = 0.1, the setting of KnOTS's released code for ViT-B
            uses=("density", "seed"),
        ),
        Rule(
            name="knots",
            title="KnOTS-TIES: TIES in the space of KnOTS",
            source="Stoica et al. 2025, arXiv 2410.19735",
            merge=merge_ties,
            elementwise=True,
            trims=True,
            space="knots",
            density=0.2,  # K = 20, chosen for both ViTs in the released code
            uses=("density", "trim"),
        ),
        Rule(
            name="tsv",
            title="TSV-M: singular vectors of the tasks, decorrelated",
            source="Gargiulo et al. 2025, arXiv 2412.00081",
            merge=merge_tsv,
        ),
        Rule(
            name="iso",
            title="Iso-C: the sum with equal singular values",
            source="Marczak et al. 2025, arXiv 2502.04959",
            merge=merge_iso,
        ),
        Rule(
            name="svc",
            title="singular value calibration of the sum",
            source="arXiv 2602.05536",
            merge=merge_svc,
            uses=("floor",),
        ),
        Rule(
            name="pico",
            title="Pico: shared output directions turned down",
            source="Tang and Yang 2026, arXiv 2604.16826",
            merge=merge_pico,
        ),
        Rule(
            name="emr",
            title="EMR-Merging: one unified update, a mask and a rescaler per task",
            source="Huang et al. 2024, arXiv 2405.17461",
            merge=None,
            elementwise=True,
            task_specific=True,
            uses=("rescale",),
        ),
    )
}
"""Every rule by name, in the order that tables show."""
