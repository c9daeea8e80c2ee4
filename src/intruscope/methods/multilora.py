"""MultiLoRA: parallel adapters, each with a learned scale that starts at zero, ``dW = s sum_i c_i B_i A_i``.

Wang et al., "MultiLoRA: Democratizing LoRA for Better Multi-Task Learning", arXiv 2311.11501. Both factors of
every adapter start at random (Kaiming uniform); the scales c_i make the update zero at the start.
s = alpha / rank. The paper does not say whether c_i is one number or one per output; both are available.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import attach_factored, load_factored
from intruscope.methods.lora import LORA_PARAMETERS

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from torch import nn

    from intruscope.methods.contract import Options, Setting
    from intruscope.methods.factored import FactoredAttached

NUM_ADAPTERS = Parameter(
    name="num_adapters", kind="int", default=3, least=1,
    source="ours: the paper's value is not confirmed", meaning="Number of parallel adapters.",
)  # fmt: skip
SCALE = Parameter(
    name="scale", kind="str", default="scalar", choices=("scalar", "per_output"),
    source="ours: the paper does not say",
    meaning="One learned scale per adapter, or one per output of each adapter.",
)  # fmt: skip


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.methods.multilora_layers import use_scaled

    per_output = options["scale"] == "per_output"
    return use_scaled(config, num_adapters=int(options["num_adapters"]), per_output=per_output)


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put MultiLoRA on a model."""
    return attach_factored(model, setting, options, method=METHOD, prepare=_prepare)


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare)


def _numbers(num_out: int, num_in: int, options: Options) -> int:
    scales = num_out if options["scale"] == "per_output" else 1
    return int(options["num_adapters"]) * (int(options["rank"]) * (num_out + num_in) + scales)


METHOD = Method(
    name="multilora",
    title="MultiLoRA",
    paper="arXiv 2311.11501",
    source="intruscope",
    cost="num_adapters times LoRA of the same rank, plus the scales.",
    how_updated="(alpha / rank) times the sum of the scaled products.",
    parameters=(*LORA_PARAMETERS, NUM_ADAPTERS, SCALE),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=_numbers,
    max_rank=lambda num_out, num_in, options: min(
        int(options["rank"]) * int(options["num_adapters"]), num_out, num_in
    ),
    plain_lora=True,
)
