"""The ways to merge that the study of merging compares, each as updates of a base's matrices.

Rules and spaces are those of :mod:`intruscope.merge`; what is here are their combinations, and the controls.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from intruscope.merge.options import MergeOptions
from intruscope.studies.claims_merging import EMR, LINEAR, RANDOM, SUM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intruscope.linalg.forms import Form
    from intruscope.merge.options import RuleName, SpaceName
    from intruscope.merge.spaces import Space

Forms = dict[str, "Form"]
"""One update for each matrix, by the matrix's name."""
METHODS: Mapping[str, tuple[RuleName, SpaceName]] = {
    SUM: ("sum", "core"),
    "ties_dense": ("ties", "dense"),
    "ties_knots": ("knots", "knots"),
    "ties_core": ("ties", "core"),
    "dare_ties_knots": ("dare_ties", "knots"),
    "tsv": ("tsv", "core"),
    "iso_core": ("iso", "core"),
    "pico": ("pico", "core"),
    "svc": ("svc", "core"),
}
"""Rule and space behind each name of the claims."""


def merged(method: str, parts: Sequence[Forms], labels: Sequence[str], *, seed: int) -> list[Forms]:
    """Merge the updates of several adapters at strength 1.

    Args:
        method: A name of :data:`METHODS`, or one of the controls.
        parts: The updates of each adapter, factors with the scaling included; all of the same matrices.
        labels: The adapters' names.
        seed: Of what is random.

    Returns:
        One merge for all adapters; one for each of them where the method must be told the task.
    """
    if method == EMR:
        return _emr(parts)
    if method == LINEAR:
        return [{name: _linear([part[name] for part in parts]) for name in parts[0]}]
    if method == RANDOM:
        rotated = [
            in_random_directions(part, label, seed=seed) for part, label in zip(parts, labels, strict=True)
        ]
        return merged(SUM, rotated, labels, seed=seed)
    from intruscope.merge.rules import merge_matrices, rule_named

    rule, space = METHODS[method]
    options = MergeOptions(seed=seed)
    found = merge_matrices(lambda: _spaces(parts, space), rule_named(rule), options, labels=tuple(labels))
    return [dict(found)]


def _spaces(parts: Sequence[Forms], space: SpaceName) -> Iterator[tuple[str, Space]]:
    from intruscope.merge.spaces import make_space

    for name in parts[0]:
        yield name, make_space([part[name] for part in parts], space=space)


def _emr(parts: Sequence[Forms]) -> list[Forms]:
    """EMR-Merging on dense updates, with the rescalers of the paper."""
    from intruscope.merge.emr import rescalers, unify

    unified = {name: unify(space.parts, MergeOptions()) for name, space in _spaces(parts, "dense")}
    factors = rescalers((each.sums for each in unified.values()), "paper")
    return [
        {name: each.part(task, factor) for name, each in unified.items()}
        for task, factor in enumerate(factors)
    ]


def _linear(forms: Sequence[Form]) -> Form:
    """PEFT's ``add_weighted_adapter(combination_type="linear")`` for adapters of one rank and scaling.

    It adds up the factors, not the updates: the result is ``s (Σ B_t)(Σ A_t)``, with T² - T terms that no
    adapter has.
    """
    import torch

    lefts, rights = zip(*forms, strict=True)
    return torch.stack(lefts).sum(dim=0), torch.stack(rights).sum(dim=0)


def in_random_directions(forms: Forms, label: str, *, seed: int) -> Forms:
    """An update with the same singular values in every matrix and random singular vectors.

    Args:
        forms: Factors by matrix.
        label: Of the adapter: each has directions of its own.
        seed: Of the directions.
    """
    from intruscope.linalg.rotation import rotate_low_rank

    def seed_of(name: str) -> int:
        digest = hashlib.sha256("\0".join((str(seed), label, name)).encode()).digest()
        return int.from_bytes(digest[:7], "big")

    return {name: rotate_low_rank(*form, seed=seed_of(name)) for name, form in forms.items()}
