"""The choices of a merge: names of rules and spaces, and the numbers that rules take. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.options import MAX_SEED, check_options, documented, option

RuleName = Literal["sum", "mean", "ties", "dare_ties", "knots", "tsv", "iso", "svc", "pico", "emr"]
"""The names of :data:`intruscope.merge.rules.RULES`."""
SpaceName = Literal["dense", "core", "knots"]
"""Where a rule acts: on the whole update, or on its coordinates in bases that all fine-tunes share."""
Basis = Literal["update", "qr", "official"]
"""How the bases of ``core`` and ``knots`` are chosen; see :func:`intruscope.merge.spaces.make_space`."""
Trim = Literal["global", "matrix"]
"""Whether TIES ranks entries over all matrices of a fine-tune together, or within each matrix."""
Rescale = Literal["paper", "official", "l2"]
"""How EMR-Merging rescales each task; see :func:`intruscope.merge.emr.rescalers`."""


@documented
@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """The numbers that rules take. Each rule uses some of them: see ``Rule.uses``."""

    weights: tuple[float, ...] | None = option(
        None, help="Factor of each fine-tune's update, in order.", about="One factor per update; None for 1."
    )
    density: float | None = option(
        None,
        help="Fraction of entries that are kept: the largest (ties, knots), or a random choice (dare_ties). "
        "By default what the rule's paper uses.",
        above=0.0,
        maximum=1.0,
    )
    trim: Trim = option(
        "global", help="Rank entries over all matrices of a fine-tune together, or within each matrix."
    )
    scaling: float = option(1.0, help="Factor of the merged update (lambda in the papers).")
    floor: float = option(
        1.0,
        help="Smallest overlap factor of svc (alpha in the paper). Below 1, directions that only one "
        "fine-tune has are amplified.",
        above=0.0,
        maximum=1.0,
    )
    rescale: Rescale = option("paper", help="How emr rescales each task's masked update.")
    seed: int = option(0, help="Random seed of dare_ties.", minimum=0, maximum=MAX_SEED)

    def __post_init__(self) -> None:
        check_options(self)
