"""What a merge is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from intruscope.merge.options import Basis, MergeOptions, Rescale, RuleName, SpaceName, Trim
from intruscope.options import check_options, documented, option, shared

Dtype = Literal["float32", "bfloat16", "float16"]


@documented
@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How updates are merged and what is written; the keyword arguments of ``merge``."""

    rule: RuleName = option(
        "mean",
        help="How updates are combined; docs/merging.md describes the rules.",
        metavar="RULE",
        choices=get_args(RuleName),
    )
    space: SpaceName | None = option(
        None,
        help="Where the rule acts: on the whole update (dense), or on its coordinates in bases that all "
        "fine-tunes share (core, knots). By default core, or the rule's own.",
    )
    weights: tuple[float, ...] | None = shared(MergeOptions, "weights", comma=True, metavar="W,...")
    scaling: float = shared(MergeOptions, "scaling", flag="lambda")
    density: float | None = shared(MergeOptions, "density")
    trim: Trim = shared(MergeOptions, "trim")
    basis: Basis = option(
        "update",
        help="Bases of core and knots: update (does not depend on how an adapter is factored), official (as "
        "Core Space is published), or qr.",
    )
    floor: float = shared(MergeOptions, "floor")
    rescale: Rescale = shared(MergeOptions, "rescale")
    task: str | None = option(
        None,
        help="With the rule emr: write the model of this fine-tune only, as an ordinary adapter or "
        "checkpoint.",
        metavar="LABEL",
    )
    heads: str | None = option(
        None,
        help="Whose heads and modules saved whole to keep: the label of a fine-tune (the last part of its "
        "name), or none for the base's. Required if a fine-tune has any; they are never merged.",
        metavar="LABEL|none",
    )
    rank: int | None = option(
        None,
        help="Write an adapter of at most this rank, and report its error. By default the exact rank, and a "
        "checkpoint where the merged update has no low rank.",
        panel="Output",
        minimum=1,
    )
    merged: bool = option(
        False, help="Write a full checkpoint with the merged update added to the base.", panel="Output"
    )
    dtype: Dtype = option(
        "float32", help="Data type of the adapter's tensors.", panel="Output", metavar="DTYPE"
    )
    seed: int = shared(MergeOptions, "seed")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def options(self) -> MergeOptions:
        """The numbers that rules take."""
        return MergeOptions(
            weights=self.weights,
            density=self.density,
            trim=self.trim,
            scaling=self.scaling,
            floor=self.floor,
            rescale=self.rescale,
            seed=self.seed,
        )
