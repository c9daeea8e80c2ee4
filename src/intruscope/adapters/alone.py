"""Adapters whose base is not at hand: the same matrix pairs, over a base that has names and shapes alone.

Names and shapes are those that the adapter's own tensors give. An update that needs the base's numbers is
listed with the reason and never approximated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from intruscope.adapters.experts import ExpertUpdate, without_layers
from intruscope.adapters.fitting import check_decodable, fit_updates
from intruscope.adapters.folder import AdapterSource, find_adapter, open_adapter
from intruscope.adapters.in_memory import adapter_source, has_adapter
from intruscope.adapters.keys import sort_keys
from intruscope.adapters.kind import ClosedForm, DecodedUpdate
from intruscope.adapters.kinds.lora import LoraUpdate, shape_of
from intruscope.adapters.opening import OpenedPair, is_named
from intruscope.errors import UsageError, printable
from intruscope.weights.layout import block_index, matrix_kind
from intruscope.weights.matrices import Finding, MatrixPair
from intruscope.weights.names import parse_name
from intruscope.weights.stored import StoredTensor
from intruscope.weights.views import TensorView

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from intruscope.adapters.config import ModuleScale
    from intruscope.adapters.kind import AdaptedModule
    from intruscope.adapters.opening import ModelLike
    from intruscope.weights.matrices import DenseUpdate, LowRankUpdate, Scope, StoredUpdate

_FLOAT32_BYTES = 4
_SAME_INPUT = frozenset({"q", "k", "v", "qkv"})
DORA = "DoRA rescales the rows of base + s B A by norms that need the base's numbers"
NEW_BASE = "its base weight was stored with the adapter, so the whole update needs the base's own"
MULTIPLIES = "the update multiplies the base's numbers, so it needs them"
WHOLE = "stored whole, so the update is the difference from the base's weight"
TOKENS = "single tokens are stored whole, so the update is the difference from the base's rows"
AMBIGUOUS = (
    "it adapts one of several fused parameters that differ in rank or alpha, and its keys do not say which"
)
NO_SHAPE = "the adapter does not tell the shape of this matrix"


@dataclass(frozen=True, kw_only=True)
class AbsentTensor(StoredTensor):
    """A weight of a base that is not at hand: its name and shape, as an adapter's own tensors give them."""

    def read_leading(self, first: int, count: int) -> torch.Tensor:  # noqa: ARG002 - always refused
        """Refused.

        Raises:
            UsageError: always.
        """
        raise self._absent()

    def raw(self) -> Iterator[bytearray]:
        """Refused.

        Raises:
            UsageError: always.
        """
        raise self._absent()

    def _absent(self) -> UsageError:
        return UsageError(
            "the adapter was opened without its base, so the base's weights cannot be read",
            remedy="name the base as well",
            tensor=self.name,
        )


@dataclass(frozen=True, kw_only=True)
class UnreadModule:
    """A module whose update cannot be known from the adapter alone.

    Attributes:
        name: Of the module.
        reason: One clause.
        tensors: What the adapter stores of it.
        factors: s B A as if it were the whole update, where there are factors: the part before DoRA's
            rescaling, or beside a new base weight.
    """

    name: str
    reason: str
    tensors: tuple[StoredTensor, ...]
    factors: MatrixPair | None = None


@dataclass(frozen=True, kw_only=True)
class AloneAdapter:
    """An adapter without its base, known from headers; no number is read yet.

    Attributes:
        source: The adapter.
        pairs: Every matrix whose update the adapter alone determines, in the order of its tensors; read
            them with :func:`load_alone`.
        unread: The modules whose update needs the base.
        scales: Rank and scaling of each pair, by name; empty for kinds that scale otherwise.
        skipped: Stored key to the reason why a tensor is in no matrix.
        findings: What the reader should know.
    """

    source: AdapterSource
    pairs: tuple[MatrixPair, ...]
    unread: tuple[UnreadModule, ...]
    scales: Mapping[str, ModuleScale]
    skipped: Mapping[str, str]
    findings: tuple[Finding, ...]


def open_alone(
    adapter: ModelLike, *, allow_pickle: bool = False, lora_alpha: float | None = None
) -> AloneAdapter:
    """Open an adapter without its base.

    Args:
        adapter: A path or hub id, ``base+adapter`` (whose base is left alone), a PeftModel in memory, an
            opened adapter, or an opened pair.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: For adapters that do not store it.

    Returns:
        The adapter. Nothing in memory is copied or changed, and no file is written.

    Raises:
        UsageError: it is no adapter.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    source = _source(adapter, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    modules, skipped = sort_keys(source)
    pairs: list[MatrixPair] = []
    unread: list[UnreadModule] = []
    findings = list(source.findings)
    found_scales: dict[str, ModuleScale] = {}
    scales = _scales(modules, source)
    inputs = _common_inputs(modules, source, scales)
    for name, module in modules.items():
        check_decodable(module)
        experts = _expert_parameters(module, source)
        scale = _expert_scale(experts, source) if experts else scales.get(name)
        found = _expert_pairs(module, experts, scale) if experts else _matrix(module, source, scale, inputs)
        if isinstance(found, UnreadModule):
            unread.append(found)
            continue
        pairs.extend(found)
        if scale is not None and source.kind.alpha_name:
            found_scales |= {pair.name: scale for pair in found}
    if inputs is not None:
        message = (
            f"{source.kind.title} does not store the number of inputs of its modules; all are taken to have "
            f"the {inputs} of the shared projection, because they are of one kind"
        )
        findings.append(Finding(code="inputs-assumed", severity="info", message=message))
    return AloneAdapter(
        source=source,
        pairs=tuple(pairs),
        unread=tuple(unread),
        scales=found_scales,
        skipped=skipped,
        findings=tuple(findings),
    )


def load_alone(pair: MatrixPair) -> LowRankUpdate | DenseUpdate:
    """Read the update of a pair from :func:`open_alone`.

    Returns:
        The factors, scaling included; or, for kinds whose update has no factors, ``DenseUpdate`` on a base of
        zeros, so that its ``tuned_OI`` is ΔW.

    Raises:
        MalformedInput: the file changed since planning.
    """
    import torch

    if isinstance(pair.update, DecodedUpdate):
        return pair.update.load_alone()
    # Updates with factors do not read their base: a NaN of its shape takes no memory, and would show.
    return pair.update.load(torch.full((), math.nan).expand(pair.base.shape))


def _source(adapter: ModelLike, *, allow_pickle: bool, lora_alpha: float | None) -> AdapterSource:
    if isinstance(adapter, OpenedPair):
        adapter = adapter.tuned
    if isinstance(adapter, AdapterSource):
        return adapter
    if has_adapter(adapter):
        return adapter_source(adapter)
    if is_named(adapter):
        name = parse_name(str(adapter))
        name = name.adapter or name
        folder = find_adapter(name, allow_pickle=allow_pickle)
        if folder is not None:
            return open_adapter(folder, name=name.given, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
        what = f"{printable(name.given)} holds no adapter"
    else:
        what = f"a {type(adapter).__name__} is no adapter"
    raise UsageError(what, remedy="name an adapter's folder or file, or pass a PeftModel")


def _scales(modules: Mapping[str, AdaptedModule], source: AdapterSource) -> dict[str, ModuleScale]:
    if source.config is None:
        return {}
    return source.config.scales_of([name for name, module in modules.items() if module.has_factors])


def _matrix(
    module: AdaptedModule, source: AdapterSource, scale: ModuleScale | None, inputs: int | None
) -> tuple[MatrixPair, ...] | UnreadModule:
    """The one matrix of a module, or why its update is not known."""
    tensors = tuple(module.roles.values())
    why = _why_unread(module, source)
    if why in (WHOLE, TOKENS, MULTIPLIES):
        return UnreadModule(name=module.name, reason=why, tensors=tensors)
    form = source.kind.update
    if isinstance(form, ClosedForm):
        num_out, num_in = form.shape_of(module, source, scale)
        num_in = inputs if num_in is None else num_in
        if num_out is None or num_in is None:
            return UnreadModule(name=module.name, reason=NO_SHAPE, tensors=tensors)
        shape = (num_out, num_in)
    else:
        shape = shape_of(module, source)
    plain = replace(module, roles={r: t for r, t in module.roles.items() if r != "replaced"})
    ((view, update),) = fit_updates(
        plain, (_view(module, shape),), source, {} if scale is None else {module.name: scale}
    ).matrices
    if isinstance(update, LoraUpdate):
        update = replace(update, magnitude=None)
    pair = _pair(view, update, tensors)
    return (
        (pair,) if why is None else UnreadModule(name=module.name, reason=why, tensors=tensors, factors=pair)
    )


def _why_unread(module: AdaptedModule, source: AdapterSource) -> str | None:
    if not module.has_factors:
        return TOKENS if "tokens" in module.roles else WHOLE
    if isinstance(source.kind.update, ClosedForm) and not source.kind.update.additive:
        return MULTIPLIES
    if "magnitude" in module.roles:
        return DORA
    return NEW_BASE if "replaced" in module.roles else None


def _common_inputs(
    modules: Mapping[str, AdaptedModule], source: AdapterSource, scales: Mapping[str, ModuleScale]
) -> int | None:
    """Inputs of every module, where only those of the one with the most are stored and all have as many.

    That is taken to be so for modules of one name, and for the queries, keys and values of blocks, as long as
    all that share a name have equally many outputs (the stages of a UNet do not).
    """
    form = source.kind.update
    if not isinstance(form, ClosedForm) or form.most_inputs is None:
        return None
    trained = {name: module for name, module in modules.items() if module.has_factors}
    outputs: dict[str, set[int | None]] = {}
    for name, module in trained.items():
        size = form.shape_of(module, source, scales.get(name))[0]
        outputs.setdefault(name.rpartition(".")[2], set()).add(size)
    kinds = {matrix_kind(name, in_block=block_index(name)[1]) for name in trained}
    alike = len(outputs) == 1 or kinds <= _SAME_INPUT
    if not trained or not alike or any(len(sizes) > 1 for sizes in outputs.values()):
        return None
    first = next(iter(trained.values()))
    return form.most_inputs({role: tensor.shape for role, tensor in first.roles.items()})


def _view(module: AdaptedModule, shape: tuple[int, int]) -> TensorView:
    """The base matrix that a module's factors are for."""
    layer, in_block = block_index(module.name)
    down = module.roles.get("down")
    stored: tuple[int, ...] = shape
    if module.is_embedding:
        kind, stored = "embedding", shape[::-1]
    elif down is not None and len(down.shape) > 2 and math.prod(down.shape[2:]) > 1:
        kind, stored = "conv", (shape[0], *down.shape[1:])
    else:
        kind = matrix_kind(module.name, in_block=in_block)
        kind = "other" if kind == "embedding" else kind  # a linear layer under an embedding's name
    scope: Scope = "paper" if in_block and kind not in ("embedding", "router", "conv") else "other"
    return TensorView(
        name=module.name,
        kind=kind,
        layer=layer,
        scope=scope,
        tensor=AbsentTensor(name=f"{module.name}.weight", path=None, dtype="F32", shape=stored),
        transposed=module.is_embedding,
    )


def _pair(view: TensorView, update: StoredUpdate, tensors: tuple[StoredTensor, ...]) -> MatrixPair:
    factors = 2 * sum(tensor.num_bytes for tensor in tensors)
    dense = 0 if isinstance(update, LoraUpdate) else math.prod(view.shape) * _FLOAT32_BYTES
    return MatrixPair(
        name=view.name,
        kind=view.kind,
        layer=view.layer,
        scope=view.scope,
        base=view,
        update=update,
        estimated_bytes=update.estimated_bytes if isinstance(update, ExpertUpdate) else factors + dense,
    )


def _expert_parameters(module: AdaptedModule, source: AdapterSource) -> tuple[str, ...]:
    """Names of the fused parameters that a wrapper may be around; none for an ordinary module."""
    if source.config is None or "down" not in module.roles:
        return ()
    path = without_layers(module.name)
    found = []
    for target in source.config.target_parameters:
        around, _, leaf = target.rpartition(".")
        # A target may be the parameter's own name alone.
        if path == around or path.endswith(f".{around or 'experts'}"):
            found.append(f"{path}.{leaf}")
    return tuple(dict.fromkeys(found))


def _expert_scale(parameters: tuple[str, ...], source: AdapterSource) -> ModuleScale | None:
    """Rank and scaling of a wrapper, by the parameter's own name; None where the candidates differ."""
    assert source.config is not None
    scales = set(source.config.scales_of(parameters).values())
    return scales.pop() if len(scales) == 1 else None


def _expert_pairs(
    module: AdaptedModule, parameters: tuple[str, ...], scale: ModuleScale | None
) -> tuple[MatrixPair, ...] | UnreadModule:
    """One pair for each expert of a fused parameter, in the orientation of the adapter's own factors."""
    down, up = module.roles["down"], module.roles["up"]
    tensors = tuple(module.roles.values())
    if scale is None:
        return UnreadModule(name=module.name, reason=AMBIGUOUS, tensors=tensors)
    shapes_fit = len(down.shape) == 2 == len(up.shape) and down.shape[0] == up.shape[1]
    if not shapes_fit or not down.shape[0] or down.shape[0] % scale.rank:
        reason = (
            f"its factors of shapes {list(down.shape)} and {list(up.shape)} are not those of experts of "
            f"rank {scale.rank}"
        )
        return UnreadModule(name=module.name, reason=reason, tensors=tensors)
    num_experts = down.shape[0] // scale.rank
    title = parameters[0] if len(parameters) == 1 else module.name
    tensor = AbsentTensor(name=title, path=None, dtype="F32", shape=(num_experts, up.shape[0], down.shape[1]))
    layer, in_block = block_index(title)
    return tuple(
        _pair(
            TensorView(
                name=f"{title}[{expert}]",
                kind=matrix_kind(title, in_block=in_block),
                layer=layer,
                scope="paper" if in_block else "other",
                tensor=tensor,
                expert=expert,
            ),
            ExpertUpdate(
                down=down,
                up=up,
                rank=scale.rank,
                expert=expert,
                scaling=scale.scaling,
                swapped=False,
                rows=None,
            ),
            tensors,
        )
        for expert in range(num_experts)
    )
