"""At which rank each module of an adapter is stored, and what that costs.

By default one rank for all modules, large enough for every edit, with zeros where a module needs less:
servers that read only one rank then read the right one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from intruscope.repair.factors import low_rank_modules, natural_rank, new_factors
from intruscope.repair.records import ModuleRank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.edits import MatrixEdit
    from intruscope.repair.factors import LowRankModule
    from intruscope.repair.survey import Survey

Rank = Literal["exact", "same"] | int


def module_ranks(
    found: Survey,
    adapter: AdapterSource,
    changed: Mapping[str, MatrixEdit],
    rank: Rank,
    *,
    compact: bool,
) -> tuple[ModuleRank, ...]:
    """Decide the rank of every module, and say what a cut would lose.

    Args:
        found: The survey.
        adapter: Of format ``peft``.
        changed: Edits by matrix.
        rank: As asked for.
        compact: Only edited modules grow.

    Raises:
        UnsupportedFormat: a format that is read but not written, by name.
        MalformedInput: a file changed since planning.
    """
    modules = low_rank_modules(found.base, adapter, found.pairing)
    exact = {module.name: natural_rank(module, changed) for module in modules}
    edited = {m.name: any(pair.name in changed for pair in m.pairs) for m in modules}
    grows = any(exact[module.name] > module.rank for module in modules)
    fixed: int | None = None
    if isinstance(rank, int):
        fixed = rank if any(edited.values()) else None
    elif rank == "exact" and not compact and grows:
        fixed = max(exact.values())
    described = []
    for module in modules:
        own = exact[module.name] if compact else module.rank
        after = fixed if fixed is not None else own
        unchanged = after == module.rank and module.scaling == 1.0 and not edited[module.name]
        touched = edited[module.name] if fixed is None else not unchanged
        described.append(
            _module_rank(module, adapter, changed, exact=exact[module.name], after=after, touched=touched)
        )
    return tuple(described)


def _module_rank(
    module: LowRankModule,
    adapter: AdapterSource,
    changed: Mapping[str, MatrixEdit],
    *,
    exact: int,
    after: int,
    touched: bool,
) -> ModuleRank:
    frobenius = spectral = 0.0
    if after < exact:
        lossy = new_factors(module, adapter, changed, rank=after, scaling=1.0)
        frobenius, spectral = lossy.frobenius_error, lossy.spectral_error
    squares = sum(
        float(changed[pair.name].change_K.square().sum()) for pair in module.pairs if pair.name in changed
    )
    return ModuleRank(
        name=module.name,
        before=module.rank,
        exact=exact,
        after=after,
        touched=touched,
        frobenius_error=frobenius,
        spectral_error=spectral,
        change_norm=math.sqrt(squares),
    )


def is_plain(modules: Sequence[ModuleRank], rank: Rank, *, compact: bool) -> bool:
    """Whether all modules get one rank and a scaling of one, so that the config is written anew."""
    if isinstance(rank, int):
        return any(module.touched for module in modules)
    return rank == "exact" and not compact and any(module.exact > module.before for module in modules)
