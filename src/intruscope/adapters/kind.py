"""What an adapter kind is: how its files are recognised, how its keys are spelled, and what ``ΔW`` is.

A kind is one record, in a file of its own below ``kinds/`` and one line of the registry. Nothing else in the
program knows kinds by name: plans, scans, repairs and losses see :class:`StoredUpdate` alone.

Shape suffixes: O out, I in, R rank, F rows of the whole (fused) matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, printable
from intruscope.weights.matrices import DenseUpdate, LowRankUpdate, StoredUpdate

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from intruscope.adapters.config import ModuleScale
    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

    Parts = Mapping[str, torch.Tensor]
    Shapes = Mapping[str, tuple[int, ...]]

OTHER_BASE_REMEDY = "check that this adapter is for this base"
WHOLE_ROLES = frozenset({"saved", "replaced", "tokens"})
"""Roles that every kind may have beside its own: a module saved whole, its base weight, single tokens."""


@dataclass(kw_only=True)
class AdaptedModule:
    """The tensors of one module by role: those of :data:`WHOLE_ROLES`, and the kind's own."""

    name: str
    roles: dict[str, StoredTensor] = field(default_factory=dict)
    is_embedding: bool = False

    @property
    def has_factors(self) -> bool:
        """Whether the kind's own parameters are there, rather than a whole matrix or single tokens."""
        return not self.roles.keys() <= WHOLE_ROLES


class ModuleKey(NamedTuple):
    """What one key of a file is.

    Attributes:
        module: Name of the module; empty for a tensor that all modules share.
        role: ``bias``, one of :data:`WHOLE_ROLES`, or one of the kind's own.
        is_embedding: The tensor is spelled as an embedding's.
    """

    module: str
    role: str
    is_embedding: bool = False


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One parameterisation of an update.

    Attributes:
        name: PEFT's ``peft_type``, or the name of the format where that has none.
        title: For people, with the paper.
        words: The word of a key that names a parameter, and its role.
        update: Makes the update of one matrix from a module's tensors; checks that they fit.
        required: Roles that a module with factors must have.
        shared: Words of parameters that lie once for all modules, and their roles.
        read_options: What the kind needs of a config beyond rank and alpha, checked.
        alpha_name: How its config calls the alpha of alpha / r; empty where its update is scaled otherwise.
        parse: Reads the keys of a file that is not PEFT's; None for PEFT's spelling.
        recognises: Whether tensors without a config are of this kind; None for kinds with one.
        file_above: Name of a file in the folder above the adapter's that holds what several adapters share;
            empty for kinds whose adapters are whole.
    """

    name: str
    title: str
    words: Mapping[str, str]
    update: Callable[[AdaptedModule, TensorView, AdapterSource, ModuleScale | None], StoredUpdate]
    required: frozenset[str]
    shared: Mapping[str, str] = field(default_factory=dict)
    read_options: Callable[[Mapping[str, Any], Path | None], dict[str, Any]] = lambda _raw, _path: {}
    alpha_name: str = ""
    parse: Callable[[str, AdapterSource], ModuleKey] | None = None
    recognises: Callable[[Mapping[str, StoredTensor]], bool] | None = None
    file_above: str = ""

    @property
    def is_peft(self) -> bool:
        """Whether PEFT writes and loads it."""
        return self.recognises is None and not self.file_above


@dataclass(frozen=True, kw_only=True)
class BaseWeight:
    """The base's side of one matrix, as a kind's arithmetic needs it.

    Attributes:
        view: Where the matrix lies in its tensor.
        matrix_OI: The matrix, in the precision of the computation.
    """

    view: TensorView
    matrix_OI: torch.Tensor

    @property
    def num_out(self) -> int:
        """Rows of the whole (fused) matrix."""
        return self.view.whole_shape[0]

    @property
    def num_in(self) -> int:
        """Columns."""
        return self.view.whole_shape[1]

    def rows(self, whole_FX: torch.Tensor) -> torch.Tensor:
        """Cut something with one row for each row of the whole matrix to this matrix's rows."""
        return self.view.select_rows(whole_FX)

    def whole(self) -> torch.Tensor:
        """All rows of the fused matrix, read again where this is a part of it: (F, I)."""
        if self.view.rows is None:
            return self.matrix_OI
        return replace(self.view, rows=None).load().to(self.matrix_OI.dtype)

    def low_rank(self, left_FR: torch.Tensor, right_RI: torch.Tensor) -> LowRankUpdate:
        """The update ``left @ right`` of the whole matrix, on this matrix's rows."""
        return LowRankUpdate(left_OR=self.rows(left_FR), right_RI=right_RI)

    def plus(self, delta_FI: torch.Tensor) -> DenseUpdate:
        """The matrix plus a dense update of the whole one."""
        return DenseUpdate(tuned_OI=self.matrix_OI + self.rows(delta_FI).to(self.matrix_OI.dtype))


class AbsentBaseWeight(BaseWeight):
    """The place of a base that is not at hand: it has a shape and no ``matrix_OI``."""

    def __init__(self, view: TensorView) -> None:
        object.__setattr__(self, "view", view)

    def plus(self, delta_FI: torch.Tensor) -> DenseUpdate:
        """The dense update itself, on this matrix's rows, as on a base of zeros."""
        return DenseUpdate(tuned_OI=self.rows(delta_FI))


Decode = Callable[["Parts", BaseWeight, Mapping[str, Any]], LowRankUpdate | DenseUpdate]
"""From a module's numbers (float32 or wider; integers as stored), the base and the options, the update."""


@dataclass(frozen=True, kw_only=True)
class DecodedUpdate(StoredUpdate):
    """An update that a kind's closed form makes from the stored numbers.

    Attributes:
        kind: Name of the kind.
        view: The base matrix.
        tensors: Role and tensor.
        options: Of the kind, with ``scaling`` and ``rank`` where the config gives them.
    """

    kind: str
    view: TensorView
    tensors: tuple[tuple[str, StoredTensor], ...]
    options: tuple[tuple[str, Any], ...]
    decode: Decode = field(repr=False)  # its address would differ between runs

    def load(self, base_OI: torch.Tensor) -> LowRankUpdate | DenseUpdate:
        """Read the numbers and compute the update in float32, or float64 where any of them is.

        Raises:
            MalformedInput: the file changed since planning.
        """
        parts, dtype = self._parts(base_OI.dtype)
        return self.decode(parts, BaseWeight(view=self.view, matrix_OI=base_OI.to(dtype)), dict(self.options))

    def load_alone(self) -> LowRankUpdate | DenseUpdate:
        """The update of an additive kind on a base of zeros, where the base is not at hand.

        Raises:
            MalformedInput: the file changed since planning.
        """
        import torch

        parts, _ = self._parts(torch.float32)
        return self.decode(parts, AbsentBaseWeight(self.view), dict(self.options))

    def _parts(self, least: torch.dtype) -> tuple[dict[str, torch.Tensor], torch.dtype]:
        """The stored numbers by role in one dtype (integers as they are), and that dtype."""
        import torch

        parts = {role: read_wide(tensor) for role, tensor in self.tensors}
        dtype = least
        for part in parts.values():
            if part.is_floating_point():
                dtype = torch.promote_types(dtype, part.dtype)
        return {r: part.to(dtype) if part.is_floating_point() else part for r, part in parts.items()}, dtype


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """The ``update`` of a kind whose whole arithmetic is one function.

    Attributes:
        decode: The function; must be importable (workers receive it by name).
        sizes: (out, in) of the whole matrix that tensors of these shapes are for, from their shapes alone;
            None for a size that they do not tell.
        conv: Also for convolutions, flattened to (out, in x kernel).
        embedding: Also for embeddings, as (width, vocabulary).
        additive: ΔW does not depend on the base's numbers.
        most_inputs: Inputs of the module that has the most, from the shape of a matrix that all share; for
            kinds whose ``sizes`` do not tell the inputs.
    """

    decode: Decode
    sizes: Callable[[Shapes, Mapping[str, Any]], tuple[int | None, int | None]]
    conv: bool = False
    embedding: bool = False
    additive: bool = True
    most_inputs: Callable[[Shapes], int] | None = None

    def __call__(
        self, module: AdaptedModule, view: TensorView, adapter: AdapterSource, scale: ModuleScale | None
    ) -> StoredUpdate:
        """The update of one matrix.

        Raises:
            ShapeMismatch: the tensors are for a matrix of another size.
            UnsupportedFormat: the kind has no such layer.
        """
        tensors = self._own_tensors(module)
        first = next(iter(tensors.values()))
        unable = (view.kind == "conv" and not self.conv) or (view.kind == "embedding" and not self.embedding)
        if unable or view.expert is not None:
            raise UnsupportedFormat(
                f"{printable(module.name)} is {_a_layer(view)}, and {adapter.kind.title} has no form for it",
                remedy=OTHER_BASE_REMEDY,
                file=adapter.path,
                tensor=first.name,
            )
        found = self.shape_of(module, adapter, scale)
        for size, expected, side in zip(found, view.whole_shape, ("outputs", "inputs"), strict=True):
            if size is not None and size != expected:
                raise ShapeMismatch(
                    f"the parameters are for {size} {side}; {printable(view.tensor.name)} of the base has "
                    f"{expected}",
                    remedy=OTHER_BASE_REMEDY,
                    file=adapter.path,
                    tensor=first.name,
                )
        return DecodedUpdate(
            kind=adapter.kind.name,
            view=view,
            tensors=tuple(tensors.items()),
            options=tuple(sorted(self._options(module, adapter, scale).items())),
            decode=self.decode,
        )

    def shape_of(
        self, module: AdaptedModule, adapter: AdapterSource, scale: ModuleScale | None
    ) -> tuple[int | None, int | None]:
        """(out, in) of the whole matrix, without a base; None for a size that the tensors do not tell.

        Raises:
            ShapeMismatch: the tensors do not belong together.
        """
        tensors = self._own_tensors(module)
        shapes = {role: tensor.shape for role, tensor in tensors.items()}
        try:
            return self.sizes(shapes, self._options(module, adapter, scale))
        except (IndexError, KeyError, ValueError) as error:
            raise ShapeMismatch(
                f"the {adapter.kind.title} parameters do not belong together ({error}): "
                + ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items()),
                remedy="save the adapter again",
                file=adapter.path,
                tensor=next(iter(tensors.values())).name,
            ) from error

    @staticmethod
    def _own_tensors(module: AdaptedModule) -> dict[str, StoredTensor]:
        return {role: tensor for role, tensor in module.roles.items() if role not in WHOLE_ROLES}

    @staticmethod
    def _options(module: AdaptedModule, adapter: AdapterSource, scale: ModuleScale | None) -> dict[str, Any]:
        options = dict(adapter.config.options) if adapter.config is not None else {}
        if scale is not None and adapter.kind.alpha_name:
            options |= {"scaling": scale.scaling, "rank": scale.rank}
        return options | {"module": module.name}


def _a_layer(view: TensorView) -> str:
    if view.expert is not None:
        return "a fused expert"
    return {"conv": "a convolution", "embedding": "an embedding"}.get(view.kind, "a linear layer")


def read_wide(tensor: StoredTensor) -> torch.Tensor:
    """A stored tensor in float32, or float64 where stored so; integers as they are.

    Raises:
        MalformedInput: the file changed since planning.
    """
    import torch

    numbers = tensor.read()
    return numbers if numbers.dtype == torch.float64 or not numbers.is_floating_point() else numbers.float()


def needs_projection(raw: Mapping[str, Any], path: Path | None) -> None:
    """Refuse an adapter whose shared random matrices are not in its file.

    Raises:
        UnsupportedFormat: it was saved without them.
    """
    if raw.get("save_projection") is False:
        raise UnsupportedFormat(
            "the random matrices that its modules share are not in the file (save_projection=False)",
            remedy="load it with PEFT and save it again with save_projection=True",
            file=path,
            tensor="save_projection",
        )


def flag(raw: Mapping[str, Any], name: str, path: Path | None, *, default: bool = False) -> bool:
    """A flag of a config.

    Raises:
        MalformedInput: it is neither true nor false.
    """
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong_value(value, "true or false", name, path)
    return value


def number(raw: Mapping[str, Any], name: str, path: Path | None, *, default: float) -> float:
    """A finite number of a config.

    Raises:
        MalformedInput: it is none.
    """
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e12 < value < 1e12:
        raise wrong_value(value, "a finite number", name, path)
    return float(value)


def integer(raw: Mapping[str, Any], name: str, path: Path | None, *, default: int, least: int = 0) -> int:
    """A whole number of a config.

    Raises:
        MalformedInput: it is none, or too small or absurdly large.
    """
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**62:
        raise wrong_value(value, f"a whole number of at least {least}", name, path)
    return value


def wrong_value(value: object, expected: str, name: str, path: Path | None) -> MalformedInput:
    """The error for a value of a config that means nothing."""
    return MalformedInput(
        f"the value is {printable(repr(value))}; it must be {expected}",
        remedy="save the adapter again, or restore its config",
        file=path,
        tensor=name,
    )
