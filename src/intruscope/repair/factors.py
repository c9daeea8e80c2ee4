"""New factors for a module of an adapter whose update was changed, exact or cut to a rank.

A change of one matrix is W' = W₀ + t (W − W₀) + L diag(c) Rᵀ. For plain LoRA that is B' = [t s B, L c] and
A' = [A; Rᵀ]. DoRA has W = diag(d) (W₀ + s B A) with d = m / ‖W₀ + s B A‖_row; with e = 1 − t + t d the same
holds as W' = diag(e) (W₀ + B' A') for B' = [t d/e s B, L c/e], and m' = e ‖W₀ + B' A'‖_row.

Shape suffixes: O out, I in, R rank, K new directions, E experts; in the module's own orientation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.keys import sort_keys
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.adapters.pairing import ModuleMatch, adapted_matrices
from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import UnsupportedFormat, printable
from intruscope.linalg.lowrank import low_rank_svd

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.edits import MatrixEdit
    from intruscope.weights.matrices import MatrixPair, Pairing
    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import RowSelection

MERGED_REMEDY = "write a full checkpoint instead (--merged)"


@dataclass(frozen=True, kw_only=True)
class LowRankModule:
    """One module of an adapter that is stored as factors.

    Attributes:
        name: Without PEFT's prefix.
        pattern_key: By which PEFT looks its rank and alpha up.
        rank: R, of one expert.
        scaling: s.
        down: A, as stored.
        up: B, as stored.
        magnitude: DoRA's m.
        biases: Stored biases that the scaling multiplies (``lora_bias``).
        pairs: The matrices that it changes; none where the base does not store them.
    """

    name: str
    pattern_key: str
    rank: int
    scaling: float
    down: StoredTensor
    up: StoredTensor
    magnitude: StoredTensor | None
    biases: tuple[StoredTensor, ...]
    pairs: tuple[MatrixPair, ...]

    @property
    def num_experts(self) -> int:
        """How many blocks of factors lie in it; 1 for an ordinary module."""
        return self.up.shape[1] // self.rank


class NewFactors(NamedTuple):
    """What is stored for a module, and what was lost where its rank was cut.

    Attributes:
        tensors: Stored key to tensor, in the dtype of the old one.
        frobenius_error: ‖what was asked − what is stored‖_F before rounding; 0 where nothing was cut.
        spectral_error: The same in the spectral norm.
    """

    tensors: dict[str, torch.Tensor]
    frobenius_error: float
    spectral_error: float


def low_rank_modules(
    base: ModelSource, adapter: AdapterSource, pairing: Pairing
) -> tuple[LowRankModule, ...]:
    """All modules of a PEFT adapter that are stored as factors, in its own order.

    Args:
        base: That the adapter is paired with.
        adapter: A LoRA of PEFT.
        pairing: Of both.

    Raises:
        IntruscopeError: keys that cannot be read; see :func:`intruscope.adapters.keys.sort_keys`.
    """
    modules, _ = sort_keys(adapter)
    match = ModuleMatch(modules, adapted_matrices(base, adapter).matrices, base, adapter)
    scales = match.scales(modules, adapter)
    pairs_of: dict[str, list[MatrixPair]] = {}
    for pair in pairing.pairs:
        if isinstance(pair.update, (LoraUpdate, ExpertUpdate)):
            pairs_of.setdefault(pair.update.down.name, []).append(pair)
    biases: dict[str, list[StoredTensor]] = {}
    for vector in trained_vectors(adapter, base):
        if vector.module is not None:
            biases.setdefault(vector.module, []).append(vector.tensor)
    return tuple(
        LowRankModule(
            name=name,
            pattern_key=match.key_of[name],
            rank=scales[name].rank,
            scaling=scales[name].scaling,
            down=module.roles["down"],
            up=module.roles["up"],
            magnitude=module.roles.get("magnitude"),
            biases=tuple(biases.get(name, ())),
            pairs=tuple(pairs_of.get(module.roles["down"].name, ())),
        )
        for name, module in modules.items()
        if module.has_factors
    )


def natural_rank(module: LowRankModule, changes: Mapping[str, MatrixEdit]) -> int:
    """The rank at which the changed update is stored exactly."""
    added = [0] * module.num_experts
    for pair in module.pairs:
        if pair.name in changes:
            added[_expert_of(pair)] += len(changes[pair.name].change_K)
    return module.rank + max(added)


def new_factors(
    module: LowRankModule,
    adapter: AdapterSource,
    changes: Mapping[str, MatrixEdit],
    *,
    rank: int,
    scaling: float,
) -> NewFactors:
    """Factors of the changed update at a rank: padded with zeros, or cut to the best of that rank.

    Args:
        module: What is stored now.
        adapter: The adapter that it belongs to.
        changes: Edits by matrix; those of other modules are ignored.
        rank: R of the new factors.
        scaling: That the new config will give this module.

    Raises:
        UnsupportedFormat: a DoRA module with a row of zero magnitude, or whose base was replaced and whose
            update is to be scaled.
        MalformedInput: a file changed since planning.

    Numerics: float64 inside, rounded once into the stored dtypes. DoRA's magnitudes go with the factors as
        they are stored.
    """
    import torch

    down, up = module.down.read().double(), module.up.read().double()
    experts, old_rank = module.num_experts, module.rank
    down_ERI = down.reshape(experts, old_rank, -1)
    up_ORE = up.reshape(up.shape[0], old_rank, experts)
    new_down_ERI = torch.zeros(experts, rank, down_ERI.shape[2], dtype=torch.float64)
    new_up_ORE = torch.zeros(up.shape[0], rank, experts, dtype=torch.float64)
    squares, spectral = 0.0, 0.0
    row_factor_O: torch.Tensor | None = None
    for expert in range(experts):
        start = _Block(up_ORE[:, :, expert] * module.scaling, down_ERI[expert])
        mine = [pair for pair in module.pairs if _expert_of(pair) == expert]
        block, row_factor_O = _changed(start, module, adapter, mine, changes, cut=rank < old_rank)
        cut = block if block.rank <= rank else _best(block, rank, row_factor_O)
        squares += cut.lost_square
        spectral = max(spectral, cut.lost_spectral)
        new_down_ERI[expert, : cut.rank] = cut.right_RI
        new_up_ORE[:, : cut.rank, expert] = cut.left_OR / scaling
    new_down = new_down_ERI.reshape(experts * rank, *module.down.shape[1:]).to(_dtype(module.down))
    new_up = new_up_ORE.reshape(module.up.shape[0], rank * experts, *module.up.shape[2:])
    new_up = new_up.to(_dtype(module.up))
    tensors = {module.down.name: new_down, module.up.name: new_up}
    if module.magnitude is not None and row_factor_O is not None:
        update = new_up.double().flatten(1) @ new_down.double().flatten(1) * scaling
        norm_O = torch.linalg.vector_norm(_whole_base(module, adapter) + update, dim=1)
        magnitude = (row_factor_O * norm_O).reshape(module.magnitude.shape)
        tensors[module.magnitude.name] = magnitude.to(_dtype(module.magnitude))
    for bias in module.biases:
        numbers = bias.read()
        tensors[bias.name] = (numbers.double() * (module.scaling / scaling)).to(numbers.dtype)
    return NewFactors(tensors, squares**0.5, spectral)


class _Block(NamedTuple):
    """One product of factors, scaling included, and what a cut took from it."""

    left_OR: torch.Tensor
    right_RI: torch.Tensor
    lost_square: float = 0.0
    lost_spectral: float = 0.0

    @property
    def rank(self) -> int:
        return self.left_OR.shape[1]


def _changed(
    block: _Block,
    module: LowRankModule,
    adapter: AdapterSource,
    pairs: list[MatrixPair],
    changes: Mapping[str, MatrixEdit],
    *,
    cut: bool,
) -> tuple[_Block, torch.Tensor | None]:
    """The block with its changes, exactly; and e, where DoRA's rows are scaled anew."""
    import torch

    num_out, num_in = block.left_OR.shape[0], block.right_RI.shape[1]
    scale_O = torch.ones(num_out, dtype=torch.float64)
    scale_I = torch.ones(num_in, dtype=torch.float64)
    lefts, rights = [], []
    for pair in pairs:
        change = changes.get(pair.name)
        if change is None:
            continue
        rows, swapped = _orientation(pair)
        size = num_in if swapped else num_out

        def lifted(columns: torch.Tensor, rows: RowSelection | None = rows, size: int = size) -> torch.Tensor:
            return _padded(columns, size) if rows is None else rows.lift(columns, size)

        if change.update_scale != 1.0:
            _check_same_base(pair, adapter)
            extra = torch.full((pair.base.shape[0], 1), change.update_scale - 1.0, dtype=torch.float64)
            scale = scale_I if swapped else scale_O
            scale += lifted(extra)[:, 0]
        if len(change.change_K):
            rowwise, columnwise = lifted(change.left_OK), _padded(change.right_IK, num_out + num_in - size)
            left, right = (columnwise, rowwise) if swapped else (rowwise, columnwise)
            lefts.append(left * change.change_K)
            rights.append(right.T)
    if module.magnitude is None:
        scaled_OR, scaled_RI = block.left_OR * scale_O.unsqueeze(1), block.right_RI * scale_I
        return _Block(torch.cat([scaled_OR, *lefts], dim=1), torch.cat([scaled_RI, *rights])), None
    if not cut and not any(pair.name in changes for pair in pairs):
        return block, None  # padding alone keeps its magnitude right
    if not pairs:
        fact = f"the rank of {printable(module.name)} cannot be lowered, because the base does not store it"
        raise UnsupportedFormat(fact, remedy="use a larger rank", file=adapter.path, tensor=module.down.name)
    whole = _whole_base(module, adapter) + block.left_OR @ block.right_RI
    factor_O = module.magnitude.read().double().flatten() / torch.linalg.vector_norm(whole, dim=1)
    row_factor_O = 1.0 - scale_O + scale_O * factor_O
    if not bool((row_factor_O.isfinite() & (row_factor_O != 0.0)).all()):
        fact = f"a row of {printable(module.name)} has a magnitude or norm of 0, which DoRA cannot rescale"
        raise UnsupportedFormat(fact, remedy=MERGED_REMEDY, file=adapter.path, tensor=module.magnitude.name)
    scaled_OR = block.left_OR * (scale_O * factor_O / row_factor_O).unsqueeze(1)
    added = [left / row_factor_O.unsqueeze(1) for left in lefts]
    return _Block(torch.cat([scaled_OR, *added], dim=1), torch.cat([block.right_RI, *rights])), row_factor_O


def _best(block: _Block, rank: int, row_factor_O: torch.Tensor | None) -> _Block:
    """The best approximation of a lower rank in the norm of the weights (Eckart and Young)."""
    left_OR = block.left_OR if row_factor_O is None else block.left_OR * row_factor_O.unsqueeze(1)
    left, values, right = low_rank_svd(left_OR, block.right_RI)
    root = values[:rank].sqrt()
    kept_OR = left[:, :rank] * root
    if row_factor_O is not None:
        kept_OR = kept_OR / row_factor_O.unsqueeze(1)
    lost = values[rank:]
    return _Block(
        kept_OR,
        (right[:, :rank] * root).T,
        lost_square=float(lost.square().sum()),
        lost_spectral=float(lost[:1].sum()),
    )


def _padded(columns: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros for the tokens that only the adapter has: an edit does not cover them."""
    import torch

    missing = size - columns.shape[0]
    return torch.cat([columns, columns.new_zeros(missing, columns.shape[1])]) if missing else columns


def _orientation(pair: MatrixPair) -> tuple[RowSelection | None, bool]:
    """Which rows of the whole a pair's matrix has, and whether the module has that transposed."""
    update = pair.update
    if isinstance(update, ExpertUpdate):
        return update.rows, update.swapped
    assert isinstance(update, LoraUpdate)
    return update.view.rows, update.swapped


def _check_same_base(pair: MatrixPair, adapter: AdapterSource) -> None:
    """Only the factors can be scaled: a base that was trained on would have to move too."""
    import torch

    update = pair.update
    if not isinstance(update, LoraUpdate) or update.replaced is None:
        return
    if not torch.equal(update.replaced.load(), pair.base.load()):
        fact = f"the adapter also replaces the base weight of {printable(pair.name)}, so scaling its factors "
        fact += "does not scale the whole update"
        raise UnsupportedFormat(fact, remedy=MERGED_REMEDY, file=adapter.path, tensor=update.down.name)


def _expert_of(pair: MatrixPair) -> int:
    return pair.update.expert if isinstance(pair.update, ExpertUpdate) else 0


def _whole_base(module: LowRankModule, adapter: AdapterSource) -> torch.Tensor:
    """The base of a module in its own orientation, with all rows and all words, float64."""
    update = module.pairs[0].update
    assert isinstance(update, LoraUpdate)
    view = replace(update.view, rows=None)
    if update.replaced is not None:
        view = replace(view, tensor=adapter.tensors[update.replaced.tensor.name])
    return view.load().double()


def _dtype(tensor: StoredTensor) -> torch.dtype:
    return tensor.leading(0).read().dtype
