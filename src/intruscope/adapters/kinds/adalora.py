"""AdaLoRA (arXiv 2303.10512): ΔW = s B diag(E) A with a rank that training spread over the modules.

PEFT scales by alpha / (r + 1e-5), r being the rank at the start, whatever was pruned since
(tuners/adalora/layer.py and model.py).

Shape suffixes: F rows of the whole matrix, I in, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, integer, number
from intruscope.adapters.kinds.lora import refuse_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import LowRankUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> LowRankUpdate:
    """The update; see the module."""
    left_FR, right_RI = parts["lora_B"], parts["lora_A"].flatten(1)
    start_rank = options["init_r"]
    scaling = (options["alpha"] if options["alpha"] > 0 else start_rank) / (start_rank + 1e-5)
    return base.low_rank(left_FR * scaling, right_RI * parts["lora_E"])


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG001 - one form for all
    """(out, in) of the whole matrix."""
    (num_out, rank), first, middle = shapes["lora_B"], shapes["lora_A"], shapes["lora_E"]
    num_in = 1
    for size in first[1:]:
        num_in *= size
    if first[0] != rank or middle != (rank, 1):
        raise ValueError("ranks differ")
    return num_out, num_in


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    refuse_options(raw, path)
    return {
        "alpha": number(raw, "lora_alpha", path, default=8.0),
        "init_r": integer(raw, "init_r", path, default=12, least=1),
    }


KIND = AdapterKind(
    name="ADALORA",
    title="AdaLoRA",
    words={name: name for name in ("lora_A", "lora_B", "lora_E")},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True),
    required=frozenset({"lora_A", "lora_B", "lora_E"}),
    read_options=_read_options,
)
