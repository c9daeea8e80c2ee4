"""What an extraction is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.options import documented, option


@documented
@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """How ranks are chosen, and what is stored; the keyword arguments of ``extract``.

    Exactly one of ``rank``, ``energy``, ``error`` and ``parameters`` chooses the ranks.
    """

    rank: int | None = option(None, help="Use this rank for every matrix.", minimum=1, maximum=10**9)
    energy: float | None = option(
        None,
        help="Choose each rank to keep at least this fraction of the update's squared norm.",
        above=0,
        maximum=1,
    )
    error: float | None = option(
        None, help="Choose each rank to keep the relative error at or below this value.", minimum=0, below=1
    )
    parameters: int | None = option(
        None,
        help="Spend this many parameters in total, where they reduce the error most.",
        minimum=1,
    )
    which: str = option(
        "linear",
        help="Matrices to extract: linear (linear layers of the blocks), all, or names separated by commas, "
        "where * matches anything.",
        metavar="SELECTION",
    )
    compact: bool = option(
        False, help="Store each matrix at its own rank (PEFT's rank_pattern; some servers ignore it)."
    )
    save_rest: bool = option(
        False, help="Also save changed norms, biases and heads, as far as PEFT supports it."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", help="Data type of the factors in the file.", panel="Output", metavar="DTYPE"
    )
