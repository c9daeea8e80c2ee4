"""Named sets of the numbers of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from intruscope.methods.contract import Method, Options


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run does where nothing else is asked for.

    Attributes:
        name: Name on the command line.
        source: Where its values come from.
        epochs: Passes over the data.
        batch: Examples per optimiser step.
        max_length: Longest input in tokens.
        schedule: Learning-rate schedule, by its name in transformers.
        warmup: Share of the steps used for warm-up.
        weight_decay: Weight decay of AdamW.
        full_rate: Learning rate of full fine-tuning.
        alpha_times_rate: Alpha times the learning rate, constant over the ranks.
        alpha_per_rank: Alpha divided by the rank.
    """

    name: str
    source: str
    epochs: int
    batch: int
    max_length: int
    schedule: str
    warmup: float
    weight_decay: float
    full_rate: float
    alpha_times_rate: float
    alpha_per_rank: float

    def rate(self, method: Method, options: Options) -> float:
        """The learning rate for a method: by its alpha where it has one, else the method's own.

        Raises:
            UsageError: the recipe gives none for it.
        """
        if "trains_base" in method.departures:
            return self.full_rate
        if "alpha" in options:
            return self.alpha_times_rate / float(options["alpha"])
        if method.rate is not None:
            return method.rate
        raise UsageError(
            f"the recipe {self.name} has no learning rate for {method.name}",
            remedy="set one with --lr",
        )

    def completed(self, method: Method, given: dict[str, object]) -> dict[str, object]:
        """The given options, and alpha by the rank where the method has both and alpha was not given."""
        names = {parameter.name for parameter in method.parameters}
        if {"rank", "alpha"} <= names and "alpha" not in given:
            rank = method.options({k: v for k, v in given.items() if k == "rank"})["rank"]
            return {**given, "alpha": self.alpha_per_rank * float(rank)}
        return given


PAPER = Recipe(
    name="paper",
    source="arXiv 2410.21228, appendix A: RoBERTa-base; embeddings frozen, all linear layers",
    epochs=5,
    batch=16,
    max_length=512,
    schedule="linear",
    warmup=0.06,
    weight_decay=0.0,
    full_rate=1e-5,
    alpha_times_rate=2.4e-3,
    alpha_per_rank=2.0,
)
RECIPES = {recipe.name: recipe for recipe in (PAPER,)}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        fact = f"unknown recipe {printable(name)}; known recipes are {', '.join(RECIPES)}"
        raise UsageError(fact, remedy="leave --recipe out to use the default")
    return RECIPES[name]
