"""PEFT's ``target_parameters``: one pair of factors for all experts of a fused parameter.

PEFT (``ParamWrapper`` in peft/tuners/lora/layer.py) stores A with shape (experts x r, in) and B with shape
(out, r x experts). Expert e has rows e r to e r + r - 1 of A, and every experts-th column of B from column e.
Which axis of the stored parameter counts as "in" has changed between PEFT's versions, so the shapes decide,
and a square parameter is refused. transformers fuses the experts of most models only in memory: the base may
store them fused or separately.

Wrappers of several parameters of one module are nested. Their keys then contain ``base_layer`` once per level
and never name the parameter, so the shapes decide that too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from intruscope.adapters.fitting import check_decodable, check_rank
from intruscope.adapters.kind import OTHER_BASE_REMEDY
from intruscope.errors import ShapeMismatch, UnsupportedFormat, printable
from intruscope.weights.matrices import LowRankUpdate, StoredUpdate
from intruscope.weights.views import RowSelection

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.adapters.config import ModuleScale
    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.kind import AdaptedModule
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

# Experts stored separately, as conversion_mapping.py of transformers fuses them.
_APART = re.compile(
    r"(.+\.)(mlp|block_sparse_moe|feed_forward)\.experts\.(\d{1,5})\.(gate_proj|up_proj|down_proj|w1|w2|w3)"
)
_PIECE_BYTES = 4 << 20
_PART_OF_LEAF = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up"}


class ExpertPlace(NamedTuple):
    """Which part of a fused parameter one base matrix is: its expert, and its rows of that expert."""

    view: TensorView
    expert: int
    rows: RowSelection | None


class FusedParameter(NamedTuple):
    """A fused parameter as transformers has it in memory.

    Attributes:
        places: All of its matrices in the base.
        num_experts: Size of its first axis.
        shape: (out, in) of one expert.
    """

    places: tuple[ExpertPlace, ...]
    num_experts: int
    shape: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ExpertUpdate(StoredUpdate):
    """ΔW of one expert: s B_e A_e, or its transpose where the adapter calls the other axis "in"."""

    down: StoredTensor
    up: StoredTensor
    rank: int
    expert: int
    scaling: float
    swapped: bool
    rows: RowSelection | None

    @property
    def estimated_bytes(self) -> int:
        """Peak memory of :meth:`load`: twice this expert's factors, and one piece of B."""
        num_experts = self.up.shape[1] // self.rank
        return 2 * (self.down.num_bytes + self.up.num_bytes) // num_experts + _PIECE_BYTES

    def load(self, base_OI: torch.Tensor) -> LowRankUpdate:  # noqa: ARG002 - a low-rank update needs no base
        """Read this expert's factors.

        Raises:
            MalformedInput: the file changed since planning.
        """
        import torch

        down_RI = self.down.read_leading(self.expert * self.rank, self.rank)
        up_OR = _every(self.up, self.expert, self.up.shape[1] // self.rank)
        dtype = torch.float64 if torch.float64 in (down_RI.dtype, up_OR.dtype) else torch.float32
        left_FR, right_RI = up_OR.to(dtype) * self.scaling, down_RI.to(dtype)
        if self.swapped:
            left_FR, right_RI = right_RI.T, left_FR.T
        left_OR = left_FR if self.rows is None else self.rows.select(left_FR)
        return LowRankUpdate(left_OR=left_OR.contiguous(), right_RI=right_RI.contiguous())


def _every(tensor: StoredTensor, first: int, step: int) -> torch.Tensor:
    """Columns ``first``, ``first + step`` ... of a stored matrix, read in pieces.

    The columns of one expert are spread over the whole file, but it need not be in memory all at once.
    """
    import torch

    num_rows = tensor.shape[0]
    size = max(1, _PIECE_BYTES * num_rows // tensor.num_bytes)
    return torch.cat(
        [
            tensor.read_leading(row, min(size, num_rows - row))[:, first::step].clone()
            for row in range(0, num_rows, size)
        ]
    )


def fused_parameters(matrices: Mapping[str, tuple[TensorView, ...]]) -> dict[str, FusedParameter]:
    """Every fused expert parameter of a base, by the name it has in memory, however it is stored."""
    found: dict[str, FusedParameter] = {}
    apart: dict[str, dict[int, dict[str, TensorView]]] = defaultdict(lambda: defaultdict(dict))
    for stored, views in matrices.items():
        if views[0].expert is not None:
            places = tuple(ExpertPlace(view, view.expert or 0, view.rows) for view in views)
            found[stored.removesuffix(".weight")] = FusedParameter(
                places, views[0].tensor.shape[0], views[0].whole_shape
            )
            continue
        match = _APART.fullmatch(stored.removesuffix(".weight"))
        if match:
            block, _, expert, leaf = match.groups()
            part = _PART_OF_LEAF.get(leaf, "down")
            name = f"{block}mlp.experts.{'down_proj' if part == 'down' else 'gate_up_proj'}"
            apart[name][int(expert)][part] = views[0]
    for name, experts in apart.items():
        fused = _fuse(experts)
        if fused is not None:
            found[name] = fused
    return found


def _fuse(experts: dict[int, dict[str, TensorView]]) -> FusedParameter | None:
    """Separately stored experts as one parameter, gate above up; None where some are missing or differ."""
    first = next(iter(experts.values()))
    parts = tuple(part for part in ("gate", "up", "down") if part in first)
    shapes = {part: first[part].shape for part in parts}
    alike = all({p: v.shape for p, v in views.items()} == shapes for views in experts.values())
    if not alike or set(experts) != set(range(len(experts))) or parts not in (("gate", "up"), ("down",)):
        return None
    if len(parts) == 1:
        places = [ExpertPlace(views["down"], expert, None) for expert, views in experts.items()]
        return FusedParameter(tuple(places), len(experts), shapes["down"])
    (gate_rows, num_in), (up_rows, up_in) = shapes["gate"], shapes["up"]
    if num_in != up_in:
        return None
    rows = {
        "gate": RowSelection(start=0, block=gate_rows),
        "up": RowSelection(start=gate_rows, block=up_rows),
    }
    places = [
        ExpertPlace(views[part], expert, rows[part]) for expert, views in experts.items() for part in parts
    ]
    return FusedParameter(tuple(places), len(experts), (gate_rows + up_rows, num_in))


def name_parameters(
    modules: Mapping[str, AdaptedModule],
    fused: Mapping[str, FusedParameter],
    targets: tuple[str, ...],
    adapter: AdapterSource,
) -> dict[str, str]:
    """Which parameter each wrapper adapts.

    Args:
        modules: Of the adapter; the nested ones end in ``base_layer``.
        fused: Of the base, with the adapter's prefix.
        targets: ``target_parameters`` of the config.
        adapter: Named in errors.

    Returns:
        Module name to parameter name, for the modules that wrap a parameter.

    Raises:
        ShapeMismatch: the factors fit no parameter that the config names.
        UnsupportedFormat: they fit several, or the parameter is square.
    """
    ends = frozenset(targets)
    by_path: dict[str, list[str]] = defaultdict(list)
    for name in fused:
        words = name.split(".")
        if any(".".join(words[at:]) in ends for at in range(len(words))):
            by_path[name.rpartition(".")[0]].append(name)
    named: dict[str, str] = {}
    for module_name, module in modules.items():
        path = module_name
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
        if path not in by_path or "down" not in module.roles:
            continue
        down, up = module.roles["down"], module.roles["up"]
        fitting = [name for name in by_path[path] if _fits(down, up, fused[name])]
        if not fitting:
            expected = ", ".join(f"{n.rpartition('.')[2]} {list(fused[n].shape)}" for n in by_path[path])
            fact = f"the factors have shapes {list(down.shape)} and {list(up.shape)}, which fit none of the "
            fact += f"parameters that the config names (out x in): {printable(expected)}"
            raise ShapeMismatch(fact, remedy=OTHER_BASE_REMEDY, file=adapter.path, tensor=down.name)
        if len(fitting) > 1 or fused[fitting[0]].shape[0] == fused[fitting[0]].shape[1]:
            raise UnsupportedFormat(
                f"the factors fit {printable(' and '.join(fitting))} in more than one way, and nothing says "
                "which one is meant",
                remedy="merge it with PEFT's merge_and_unload and scan that checkpoint",
                file=adapter.path,
                tensor=down.name,
            )
        named[module_name] = fitting[0]
    return named


def without_layers(module: str) -> str:
    """The name of the module that nested wrappers of its parameters are around."""
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def _fits(down: StoredTensor, up: StoredTensor, parameter: FusedParameter) -> bool:
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        return False
    sizes = (up.shape[0], down.shape[1])
    whole = down.shape[0] > 0 and down.shape[0] % parameter.num_experts == 0
    return whole and sizes in (parameter.shape, parameter.shape[::-1])


def expert_updates(
    module: AdaptedModule, parameter: FusedParameter, scale: ModuleScale
) -> tuple[tuple[TensorView, StoredUpdate], ...]:
    """One update for each matrix of a fused parameter.

    Raises:
        MalformedInput: the rank contradicts the config.
        UnsupportedFormat: a dtype that cannot be decoded.
    """
    check_decodable(module)
    down, up = module.roles["down"], module.roles["up"]
    rank = down.shape[0] // parameter.num_experts
    check_rank(rank, scale.rank, down)
    swapped = (up.shape[0], down.shape[1]) != parameter.shape
    return tuple(
        (
            place.view,
            ExpertUpdate(
                down=down,
                up=up,
                rank=rank,
                expert=place.expert,
                scaling=scale.scaling,
                swapped=swapped,
                rows=place.rows,
            ),
        )
        for place in parameter.places
    )
