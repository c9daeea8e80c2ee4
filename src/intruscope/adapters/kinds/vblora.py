"""VB-LoRA (arXiv 2405.15179): LoRA whose factors are mixed from one shared bank of vectors.

Shape suffixes: V vectors of the bank, L their length, T tiles, R rank, K mixed vectors; F rows, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, integer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import LowRankUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> LowRankUpdate:
    """The update; see the module."""
    right_RTL = _mixed(parts, "vblora_logits_A", options["topk"])
    left_TRL = _mixed(parts, "vblora_logits_B", options["topk"])
    left_FR = left_TRL.transpose(1, 2).reshape(-1, left_TRL.shape[1])
    return base.low_rank(left_FR, right_RTL.flatten(1))


def _mixed(parts: Parts, name: str, num_mixed: int) -> torch.Tensor:
    import torch

    bank_VL = parts["vblora_vector_bank"]
    if name in parts:
        logits, indices = parts[name].topk(num_mixed, dim=-1)
        weights = logits.softmax(dim=-1)
    else:  # save_only_topk_weights: all weights but the last, which sums them to one
        weights, indices = parts[f"{name}_topk_weights"], parts[f"{name}_topk_indices"].long()
        weights = torch.cat([weights, 1.0 - weights.sum(-1, keepdim=True)], dim=-1)
    return (weights.unsqueeze(-1) * bank_VL[indices]).sum(-2)


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG001 - shapes tell all
    """(out, in) of the whole matrix."""
    _, length = shapes["vblora_vector_bank"]
    first, second = (
        shapes.get(f"vblora_logits_{side}") or shapes[f"vblora_logits_{side}_topk_indices"] for side in "AB"
    )
    if first[0] != second[1]:
        raise ValueError("ranks differ")
    return second[0] * length, first[1] * length


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    return {"topk": integer(raw, "topk", path, default=2, least=1)}


_LOGITS = ("vblora_logits_A", "vblora_logits_B")
_ENDS = ("", "_topk_indices", "_topk_weights")
KIND = AdapterKind(
    name="VBLORA",
    title="VB-LoRA",
    words={f"{name}{end}": f"{name}{end}" for name in _LOGITS for end in _ENDS},
    shared={"vblora_vector_bank": "vblora_vector_bank"},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset({"vblora_vector_bank"}),
    read_options=_read_options,
)
