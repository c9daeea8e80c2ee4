"""A base and its fine-tune as one live transformers model, switched and edited in memory.

Parameters point at the base's tensors, at the tuned ones, or at edited copies. The stored tensors are never
written to, so that every edit can be undone exactly, and switching copies nothing.

Shape suffixes: O out, I in, K kept, F rows of a whole (fused) matrix.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from intruscope.adapters.twins import shared_twin
from intruscope.errors import IntruscopeError, UnsupportedFormat, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from intruscope.adapters.live_models import LanguageKind
    from intruscope.weights.views import TensorView


class Edit(Protocol):
    """A new value for one matrix, or for one tensor that is not a matrix (``repair.edits.MatrixEdit``)."""

    @property
    def name(self) -> str:
        """The matrix's name in a scan; the stored name of another tensor."""

    def applied(self, base_OI: Tensor, tuned_OI: Tensor) -> Tensor:
        """The edited tensor, from the base's and the tuned model's."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """What is needed for losses on text.

    Attributes:
        model: A transformers model with a language-model head, in evaluation mode.
        tokenizer: The base's tokenizer.
        kind: ``causal`` or ``masked``.
        max_context: Longest input in tokens, including special ones; None without a limit.
    """

    model: Any
    tokenizer: Any
    kind: LanguageKind
    max_context: int | None


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    """A model with a head for a task: a classifier of sequences, or one that scores choices.

    Attributes:
        model: A transformers model, in evaluation mode.
        tokenizer: The tuned model's tokenizer, or else the base's.
        labels: Names of the classes, in order; empty for a model that scores choices.
        max_context: Longest input in tokens; None without a limit.
    """

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    max_context: int | None


@dataclass(frozen=True, kw_only=True)
class MatrixPlace:
    """A live parameter, and the part of it that is one matrix; the whole parameter where ``view`` is None."""

    parameter: str
    view: TensorView | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ChangedParameter:
    """A live parameter that the fine-tune changed.

    Attributes:
        name: In the live model.
        parameter: The parameter itself, in whatever state the pair is.
        base: The base's tensor.
        tuned: The tuned model's tensor, of the same shape.
        views: The matrices that it holds, by their names in a scan; empty for a bias or a norm.
    """

    name: str
    parameter: nn.Parameter
    base: Tensor
    tuned: Tensor
    views: Mapping[str, TensorView]


class LivePair:
    """One model with two states, ``base`` and ``tuned``; it starts tuned.

    Args:
        language: The language model, or the error that explains why there is none.
        task: The classifier, or the error that explains why there is none.
        choices: The model that scores choices with its own head, the error that explains why it cannot, or
            None where the language model scores them.
        live: The parameters that the models share, by name; each points at the tuned tensor.
        base: The base's tensors, by name, of the parameters that differ between the states.
        places: Where each matrix is, by its name in a scan; and each other tensor, by its stored name.
        description: Names of the base and the tuned model.
    """

    def __init__(
        self,
        *,
        language: LanguageModel | IntruscopeError,
        task: TaskModel | IntruscopeError,
        choices: TaskModel | IntruscopeError | None = None,
        live: Mapping[str, nn.Parameter],
        base: Mapping[str, Tensor],
        places: Mapping[str, MatrixPlace],
        description: tuple[str, str] = ("base", "tuned"),
    ) -> None:
        self._language = language
        self._task = task
        self._choices = choices
        self._live = live
        self._tuned = {name: parameter.data for name, parameter in live.items()}
        self._base = {**self._tuned, **base}
        self._changed = tuple(base)
        self._places = places
        self.description = description

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the live parameters that differ between base and tuned."""
        return self._changed

    def changed_parameters(self) -> tuple[ChangedParameter, ...]:
        """Every parameter that differs between base and tuned, with both of its values."""
        views: dict[str, dict[str, TensorView]] = {}
        for name, place in self._places.items():
            if place.view is not None:
                views.setdefault(place.parameter, {})[name] = place.view
        return tuple(
            ChangedParameter(
                name=name,
                parameter=self._live[name],
                base=self._base[name],
                tuned=self._tuned[name],
                views=views.get(name, {}),
            )
            for name in self._changed
        )

    def language_model(self) -> LanguageModel:
        """The language model, in the present state.

        Raises:
            IntruscopeError: neither model has a language-model head.
        """
        if isinstance(self._language, IntruscopeError):
            raise self._language
        return self._language

    def task_model(self) -> TaskModel:
        """The classifier, in the present state; its head is the tuned model's in every state.

        Raises:
            IntruscopeError: the tuned model is not a classifier, or weights of its head are missing.
        """
        if isinstance(self._task, IntruscopeError):
            raise self._task
        return self._task

    def choice_model(self) -> TaskModel | None:
        """The model that scores choices, in the present state; None where it has no head for them.

        Raises:
            IntruscopeError: weights of the head are missing.
        """
        if isinstance(self._choices, IntruscopeError):
            raise self._choices
        return self._choices

    def base_language_model(self) -> LanguageModel:
        """The base's language model as a module of its own, beside that of :meth:`language_model`.

        It shares all tensors with this pair and is not affected by its state.

        Raises:
            IntruscopeError: neither model has a language-model head.
        """
        import torch

        language = self.language_model()
        before = {
            id(parameter): torch.nn.Parameter(self._base[name], requires_grad=False)
            for name, parameter in self._live.items()
        }
        return replace(language, model=shared_twin(language.model, before))

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """In this context every weight is the base's: no adapter, trained bias, embedding or norm remains."""
        with self._pointing_at(self._base):
            yield

    @contextmanager
    def as_tuned(self) -> Iterator[None]:
        """In this context every weight is the tuned model's."""
        with self._pointing_at(self._tuned):
            yield

    @contextmanager
    def interpolated(self, fraction: float) -> Iterator[None]:
        """In this context every tensor that the fine-tune changed is base + fraction (tuned - base)."""
        import torch

        mixed = {}
        for name in self._changed:
            base, tuned = self._base[name], self._tuned[name]
            wide = torch.promote_types(base.dtype, torch.float32)
            mixed[name] = torch.lerp(base.to(wide), tuned.to(wide), fraction).to(base.dtype)
        with self._pointing_at({**self._tuned, **mixed}):
            yield

    @contextmanager
    def with_update(self, updates: Mapping[str, Tensor]) -> Iterator[None]:
        """In this context each named matrix is its base plus the given (out, in) update, all others tuned.

        Raises:
            UsageError: an update of another shape.
            UnsupportedFormat: the live model holds no matrix of that name.
        """
        edited: dict[str, Tensor] = {}
        for name, update_OI in updates.items():
            base_OI = self.base_matrix(name)
            if update_OI.shape != base_OI.shape:
                raise UsageError(
                    f"the update has the shape {list(update_OI.shape)}, the matrix {list(base_OI.shape)} "
                    "(out, in)",
                    remedy="transpose the update if it is (in, out)",
                    tensor=name,
                )
            self._write(edited, name, base_OI + update_OI.to(base_OI.dtype).to(base_OI.device))
        with self._pointing_at({**self._tuned, **edited}):
            yield

    @contextmanager
    def with_edits(self, edits: Iterable[Edit]) -> Iterator[None]:
        """In this context the named matrices and tensors are edited; all others are tuned.

        Raises:
            UnsupportedFormat: the live model holds nothing of that name.
        """
        edited: dict[str, Tensor] = {}
        for edit in edits:
            new = edit.applied(self.base_matrix(edit.name), self.tuned_matrix(edit.name))
            self._write(edited, edit.name, new)
        with self._pointing_at({**self._tuned, **edited}):
            yield

    def base_matrix(self, name: str) -> Tensor:
        """A copy of a matrix of the base: (out, in), float32 or wider. Other tensors keep their shape.

        It is on the model's device, or on the CPU where the device has no float64.

        Raises:
            UnsupportedFormat: the live model holds nothing of that name.
        """
        return self._cut(self._base, name)

    def tuned_matrix(self, name: str) -> Tensor:
        """The same for the tuned model."""
        return self._cut(self._tuned, name)

    def layers_with(self, name: str) -> tuple[TensorView, tuple[nn.Module, ...]]:
        """Where a matrix lies in a live weight, and the linear layers that compute with that weight.

        Both the language model and the model with a head have such a layer; they share the weight.

        Raises:
            UnsupportedFormat: no linear layer holds a matrix of that name.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        place = self._place(name)
        weight = self._live[place.parameter]
        found: dict[int, nn.Module] = {}
        for each in (self._language, self._task, self._choices):
            if isinstance(each, (LanguageModel, TaskModel)):
                for module in each.model.modules():
                    if isinstance(module, (nn.Linear, Conv1D)) and module.weight is weight:
                        found[id(module)] = module
        if place.view is None or not found:
            raise UnsupportedFormat(
                "this matrix is not the weight of a linear layer, so it cannot be changed during training",
                remedy="use an intervention without training, such as intruders or uniform",
                tensor=name,
            )
        return place.view, tuple(found.values())

    def parameter_of(self, name: str) -> nn.Parameter | None:
        """The live parameter that holds a matrix or another tensor; None where there is none of that name."""
        place = self._places.get(name)
        return None if place is None else self._live[place.parameter]

    def _place(self, name: str) -> MatrixPlace:
        found = self._places.get(name)
        if found is not None:
            return found
        raise UnsupportedFormat(
            "the live model does not hold this tensor; transformers may keep it in another form, as it does "
            "with fused experts",
            remedy="edit the files instead, with intruscope repair",
            tensor=name,
        )

    def _cut(self, state: Mapping[str, Tensor], name: str) -> Tensor:
        """The (out, in) matrix in a live tensor, cut out as ``TensorView.load`` does from a file."""
        import torch

        place = self._place(name)
        stored, view = state[place.parameter], place.view
        wide = stored.to(torch.promote_types(stored.dtype, torch.float32))
        if wide.device.type == "mps":  # it has no float64, which edits are computed in
            wide = wide.cpu()
        if view is None:
            return wide.clone()
        return view.cut(wide)

    def _write(self, edited: dict[str, Tensor], name: str, new: Tensor) -> None:
        """Write a matrix into a copy of the live tensor that holds it, in the live model's orientation."""
        place = self._place(name)
        view = place.view
        if place.parameter not in edited:
            edited[place.parameter] = self._tuned[place.parameter].contiguous().clone()
        target = edited[place.parameter]
        if view is None:
            target.copy_(new.to(target.dtype))
            return
        view.place(new, target)

    @contextmanager
    def _pointing_at(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        before = {name: self._live[name].data for name in tensors}
        try:
            for name, tensor in tensors.items():
                self._live[name].data = tensor
            yield
        finally:
            for name, tensor in before.items():
                self._live[name].data = tensor
