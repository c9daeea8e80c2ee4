"""A repaired adapter of a kind that cannot hold an edit in its own form (LoHa, OFT, loralib ...), as a LoRA.

Its edited update is decomposed module by module. Float64 inside, rounded once to float32 factors.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.adapters.updates import SavedUpdate, TokensUpdate
from intruscope.errors import UnsupportedFormat, UsageError, printable
from intruscope.repair.factors import MERGED_REMEDY
from intruscope.repair.records import ModuleRank
from intruscope.weights.matrices import LowRankUpdate
from intruscope.writing.lora import LoraAdapter
from intruscope.writing.modules import modules_of
from intruscope.writing.naming import adapter_names
from intruscope.writing.rest import find_rest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.edits import MatrixEdit
    from intruscope.repair.records import Rank
    from intruscope.repair.survey import Survey
    from intruscope.weights.matrices import Pairing
    from intruscope.writing.modules import TargetModule

_Triplets = tuple["Tensor", "Tensor", "Tensor"]


def holds_edits(adapter: AdapterSource, pairing: Pairing) -> bool:
    """Whether the adapter is a LoRA of PEFT, whose own factors can be changed."""
    return adapter.kind.name == "LORA" and all(
        isinstance(pair.update, (ExpertUpdate, SavedUpdate, TokensUpdate))
        or (isinstance(pair.update, LoraUpdate) and pair.update.enabled is None)
        for pair in pairing.pairs
    )


def convert(
    found: Survey, adapter: AdapterSource, changed: Mapping[str, MatrixEdit], rank: Rank, *, compact: bool
) -> tuple[LoraAdapter, tuple[ModuleRank, ...]]:
    """Turn an adapter's update and its edits into LoRA factors.

    Args:
        found: The survey.
        adapter: Of any kind.
        changed: Edits by matrix.
        rank: ``exact``, or a number.
        compact: Each module keeps its own rank.

    Raises:
        UsageError: the rank ``same``: there is none yet.
        UnsupportedFormat: an update of full rank with ``exact``, or one that a LoRA has no place for.
        MalformedInput: a file changed since planning.
    """
    if rank == "same":
        raise UsageError(
            f"rank 'same' needs an adapter that stores LoRA factors, and this one is {adapter.kind.title}",
            remedy="use exact, or a number",
            file=adapter.path,
        )
    names = adapter_names(found.base, adapter)
    modules = modules_of(found.pairing, found.base, adapter, names)
    low_rank = [m for m in modules if not isinstance(m.whole.update, (SavedUpdate, TokensUpdate))]
    found_of: dict[str, _Triplets] = {}
    for module in low_rank:
        triplets = _decomposed(module, changed)
        num_directions = len(triplets[1])
        if rank == "exact" and num_directions == min(module.shape):
            raise UnsupportedFormat(
                f"the edited update of {printable(module.name)} has full rank ({num_directions}), so that a "
                "LoRA that holds it exactly is larger than the matrix",
                remedy=f"{MERGED_REMEDY}, or give a smaller --rank and accept its error",
                file=adapter.path,
            )
        if num_directions and module.kind is None:
            raise _refused(module.name, module.reason, adapter)
        if num_directions:
            found_of[module.name] = triplets
    adapted = tuple(module for module in low_rank if module.name in found_of)
    exact = {name: len(values) for name, (_, values, _) in found_of.items()}
    common = None if compact else rank if isinstance(rank, int) else max(exact.values(), default=1)
    rest, saved = find_rest(
        found.base,
        adapter,
        found.pairing,
        modules=[module for module in modules if module not in adapted],
        adapted={module.module for module in adapted},
        norms={module.name: 1.0 for module in modules if module not in low_rank},
        names=names,
        save=True,
    )
    lost = next((entry for entry in rest if entry.status == "lost"), None)
    if lost is not None:
        raise _refused(lost.name, lost.reason, adapter)
    gap = next((e for e in found.pairing.coverage if e.origin == "adapter" and e.gap), None)
    if gap is not None:
        raise _refused(gap.tensor, gap.reason, adapter)
    lora = LoraAdapter(
        base=found.base,
        names=names,
        modules=adapted,
        others=tuple(module.module for module in modules if module not in adapted),
        factors={name: _factors(triplets, common) for name, triplets in found_of.items()},
        rank=common,
        saved=saved,
    )
    return lora, tuple(_described(m, found_of[m.name], common or exact[m.name], changed) for m in adapted)


def converted_config(lora: LoraAdapter, adapter: AdapterSource) -> dict[str, Any]:
    """The LoRA's config; the base is the one that the original names."""
    raw: Mapping[str, Any] = {} if adapter.config is None else adapter.config.raw
    base = raw.get("base_model_name_or_path")
    named = {"base_model_name_or_path": base, "revision": raw.get("revision")} if base else {}
    return {**lora.config(), **named}


def _refused(name: str, reason: str, adapter: AdapterSource) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"{printable(name)} has no place in a LoRA adapter ({reason})",
        remedy=MERGED_REMEDY,
        file=adapter.path,
    )


def _decomposed(module: TargetModule, changed: Mapping[str, MatrixEdit]) -> _Triplets:
    """Left vectors, values and right vectors of ΔW with its edits: those above rounding."""
    import torch

    from intruscope.linalg.dense import svd
    from intruscope.linalg.lowrank import low_rank_svd

    base_OI = module.whole.base.load().double()
    update = module.whole.update.load(base_OI)
    scale_O1 = torch.ones(len(base_OI), 1, dtype=torch.float64)
    lefts, rights = [], []
    for pair in module.pairs:
        edit = changed.get(pair.name)
        if edit is None:
            continue
        rows, num_rows = pair.base.rows, len(base_OI)
        rescaled = torch.full((pair.base.shape[0], 1), edit.update_scale - 1.0, dtype=torch.float64)
        scale_O1 += rescaled if rows is None else rows.lift(rescaled, num_rows)
        if edit.num_directions:
            left = edit.left_OK * edit.change_K
            lefts.append(left if rows is None else rows.lift(left, num_rows))
            rights.append(edit.right_IK.T)
    if isinstance(update, LowRankUpdate):
        left_OR = torch.cat([update.left_OR.double() * scale_O1, *lefts], dim=1)
        left, values, right = low_rank_svd(left_OR, torch.cat([update.right_RI.double(), *rights]))
        floor = 0.0
    else:
        tuned_OI = update.tuned_OI.double()
        change_OI = (tuned_OI - base_OI) * scale_O1
        for one, other in zip(lefts, rights, strict=True):
            change_OI += one @ other
        left, values, right = svd(change_OI)
        # What rounding the tuned matrix to its dtype makes: a random matrix, of this spectral norm at most.
        spread = sum(math.sqrt(size) for size in module.shape) / math.sqrt(math.prod(module.shape))
        floor = 4.0 * torch.finfo(update.tuned_OI.dtype).eps * float(tuned_OI.norm()) * spread
    floor = max(floor, float(values[:1].sum()) * max(module.shape) * torch.finfo(torch.float64).eps)
    kept = values > floor
    return left[:, kept], values[kept], right[:, kept]


def _factors(triplets: _Triplets, rank: int | None) -> tuple[Tensor, Tensor]:
    left, values, right = (part[..., :rank] for part in triplets)
    root = values.sqrt()
    return (left * root).float().contiguous(), (right * root).T.float().contiguous()


def _described(
    module: TargetModule, triplets: _Triplets, rank: int, changed: Mapping[str, MatrixEdit]
) -> ModuleRank:
    values = triplets[1]
    edits = [changed[pair.name] for pair in module.pairs if pair.name in changed]
    return ModuleRank(
        name=module.name,
        before=0,
        exact=len(values),
        after=rank,
        touched=True,
        frobenius_error=float(values[rank:].norm()),
        spectral_error=float(values[rank : rank + 1].sum()),
        change_norm=math.sqrt(sum(float(edit.change_K.square().sum()) for edit in edits)),
    )
