"""What every fine-tuning method says of itself, and what it gives back once it is on a model.

A method is described by one frozen :class:`Method`; ``method.attach(model, setting, options)`` puts it on a
transformers model and gives an :class:`Attached`. One test suite runs over all methods and takes everything
that differs between them from the description: there is no method's name in it.

Shape suffixes: O out, I in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from intruscope.errors import UsageError, nearest, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import TrainerCallback

Value = int | float | str | bool
Options = dict[str, Value]
LayerKind = Literal["linear", "conv1d"]
Departure = Literal[
    "moves_base",
    "trains_base",
    "nonzero_at_start",
    "uneven_ranks",
    "no_training",
    "no_static_update",
]
"""Where a method departs from the contract, declared:

``moves_base``        its start changes the base's weights (PiSSA); the update is against the weights before
``trains_base``       the model's own weights are trained, and nothing is added (full)
``nonzero_at_start``  the update is not zero before the first step
``uneven_ranks``      the option ``rank`` is the mean over the matrices; each has its own
``no_training``       the update is computed, not trained (construct)
``no_static_update``  the update depends on the input (a mixture of experts): there is none to give
"""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An option of a method.

    Attributes:
        name: As the command line takes it, with underscores.
        kind: What its values are.
        default: Used when it is not given.
        source: Where the default is from (paper and table, or PEFT).
        meaning: One line.
        choices: The only values of a ``str``; empty where any will do.
        least, most: Bounds of a number, both included.
    """

    name: str
    kind: Literal["int", "float", "str", "bool"]
    default: Value
    source: str
    meaning: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None

    def checked(self, value: object) -> Value:
        """The value in this parameter's kind; text is read as the command line gives it.

        Raises:
            UsageError: another kind, or out of bounds.
        """
        found = _read(self.kind, value)
        ok = found is not None and (not self.choices or found in self.choices)
        if ok and isinstance(found, (int, float)):
            above = self.least is None or found >= self.least
            ok = above and (self.most is None or found <= self.most)
        if found is None or not ok:
            raise UsageError(
                f"{printable(value)!r} is not valid: it must be {self.expected}",
                remedy=f"for example {self.name}={self.default}",
                tensor=self.name,
            )
        return found

    @property
    def expected(self) -> str:
        """What values it takes, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
        bounds = {"from": self.least, "up to": self.most}
        said = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        return " ".join([words[self.kind], *said])


def _read(kind: str, value: object) -> Value | None:
    """None where the value is not of the kind (or is not finite)."""
    if kind == "bool":
        return {"true": True, "false": False}.get(str(value).lower())
    if isinstance(value, bool):
        return None
    if kind == "str":
        return value if isinstance(value, str) else None
    try:
        number = float(str(value))
    except ValueError:
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    if kind == "float":
        return number
    return int(number) if number.is_integer() else None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method may need to know besides its options.

    Attributes:
        targets: Ends of module names, or ``all-linear`` (every linear layer but the head).
        train_whole: Ends of names of modules trained whole beside the method; the head of a
            model that is no language model is so without being named.
        total_steps: Optimiser steps of the run, for methods with a schedule.
        batches: Batches as the model takes them, for methods that start from data (EVA).
        kept: Batches of text whose knowledge is to be kept, for methods that start from it (LoRA-Null).
        tuned: A model that was fine-tuned from this one, for methods that approximate its update (construct).
        seed: Of everything random in the start.
    """

    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    train_whole: tuple[str, ...] = ()
    total_steps: int | None = None
    batches: Iterable[Mapping[str, Any]] | None = None
    kept: Iterable[Mapping[str, Any]] | None = None
    tuned: nn.Module | None = None
    seed: int = 0


@runtime_checkable
class Attached(Protocol):
    """A model with a method on it.

    Attributes:
        model: What is trained, saved in checkpoints and evaluated: a PeftModel, or the model itself.
        names: The matrices that the method changes, by their module's name in the base model.
    """

    model: nn.Module
    names: tuple[str, ...]

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Everything that is trained, by its name in ``model``."""

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW, or the method's own; biases and norms without decay."""

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What must happen between steps (pruning, proximal steps, merging), for transformers' Trainer."""

    def update(self, name: str) -> Tensor:
        """The update of one matrix: (out, in), float32, against the weights before the method came.

        Raises:
            UsageError: the method does not change a matrix of that name, or has no static update.
        """

    def merged(self) -> nn.Module:
        """A float32 copy of the base model with the update in its weights.

        Raises:
            UsageError: the method has no static update.
        """

    def save(self, folder: Path) -> None:
        """Write what :meth:`Method.load` needs beside the base; for ``plain_lora``, what PEFT loads alone.

        Raises:
            OutputConflict: the folder exists and is not empty.
        """


@dataclass(frozen=True, kw_only=True)
class Method:
    """One fine-tuning method.

    Attributes:
        name: As it is asked for.
        title: As people write it.
        paper: arXiv number, or the venue's.
        source: Whose implementation of the layer runs.
        cost: What it costs beside plain LoRA: parameters, time, memory.
        how_updated: How its update is obtained.
        parameters: Its options.
        layers: Kinds of layers that it can change; others are refused by name.
        mergeable: A plain matrix can replace it after training.
        plain_lora: What it saves is an ordinary PEFT LoRA (or DoRA) that loads without Intruscope.
        own_optimizer: Training by another optimiser than :meth:`Attached.optimizer` is another method.
        needs_kept: It starts from text whose knowledge is to be kept, and cannot do without.
        departures: Where it departs from the contract.
        rate: Learning rate where no recipe gives one: of methods without alpha, where it could be cited.
        rate_source: Where it is from, and on what it was used.
        documentation: Its file's docstring.
        attach: Puts it on a model; the model is changed, as PEFT does.
        load: Puts a saved one on a model: (base model, folder).
        num_trainable: Numbers trained in one matrix: (out, in, options); biases and shared ones apart.
        max_rank: Rank that the update of one matrix cannot exceed: (out, in, options).
    """

    name: str
    title: str
    paper: str
    source: Literal["peft", "intruscope"]
    cost: str
    how_updated: str
    parameters: tuple[Parameter, ...]
    documentation: str
    attach: Callable[[nn.Module, Setting, Options], Attached]
    load: Callable[[nn.Module, Path], Attached]
    num_trainable: Callable[[int, int, Options], int]
    max_rank: Callable[[int, int, Options], int]
    layers: frozenset[LayerKind] = frozenset({"linear", "conv1d"})
    mergeable: bool = True
    plain_lora: bool = False
    own_optimizer: bool = False
    needs_kept: bool = False
    rate: float | None = None
    rate_source: str = ""
    departures: frozenset[Departure] = frozenset()

    def options(self, given: Mapping[str, object] | None = None) -> Options:
        """Every option with its value: the given ones, checked, and the defaults.

        Raises:
            UsageError: an option that the method does not have, or a value out of bounds.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given or {}:
            if name not in known:
                names = ", ".join(known) or "none"
                raise UsageError(
                    f"{self.name} has no option {printable(name)}; its options are {names}",
                    remedy=nearest(name, known, what="option") or f"see: intruscope methods {self.name}",
                )
        return {
            name: parameter.checked(given[name]) if given and name in given else parameter.default
            for name, parameter in known.items()
        }


def any_rank(num_out: int, num_in: int, _options: Options) -> int:
    """The bound of methods that can reach every rank."""
    return min(num_out, num_in)
