"""RandLoRA (arXiv 2502.00987): full-rank updates from random bases that all modules share and each scales.

The bases must be in the file (``save_projection``, the default).

Shape suffixes: B bases, R rank, S the smaller side, L the larger one, F rows of the whole matrix, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, needs_projection, number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    scales_RB, gains_BS = parts["randlora_lambda"], parts["randlora_gamma"]
    rank, num_bases = scales_RB.shape
    smaller, larger = sorted((base.num_out, base.num_in))
    # (R, 1, S) times (R, B, 1) times (B, S), flattened over ranks and then bases, against a second side that
    # is flattened over bases and then ranks: PEFT's order (tuners/randlora/layer.py), which training used.
    first = scales_RB[:, :, None] * parts["randlora_A"][:, :num_bases, :smaller] * gains_BS[None]
    second = parts["randlora_B"][:larger, :num_bases, :].flatten(1)
    delta_LS = second @ first.flatten(end_dim=1)
    delta_FI = delta_LS if base.num_in == smaller else delta_LS.T
    return base.plus(delta_FI * (options["randlora_alpha"] / rank))


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[None, None]:  # noqa: ARG001
    """Neither size by itself: which side is the smaller one is not in the file."""
    rank, num_bases = shapes["randlora_lambda"]
    if shapes["randlora_A"][0] != rank or shapes["randlora_B"][2] != rank:
        raise ValueError("ranks differ")
    if shapes["randlora_gamma"][0] != num_bases:
        raise ValueError("numbers of bases differ")
    return None, None


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    needs_projection(raw, path)
    return {"randlora_alpha": number(raw, "randlora_alpha", path, default=640.0)}


KIND = AdapterKind(
    name="RANDLORA",
    title="RandLoRA",
    words={name: name for name in ("randlora_lambda", "randlora_gamma")},
    shared={name: name for name in ("randlora_A", "randlora_B")},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset({"randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"}),
    read_options=_read_options,
)
