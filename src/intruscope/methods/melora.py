"""MELoRA: small adapters on the blocks of the diagonal, ``dW = blockdiag(s B_1 A_1, ..., s B_n A_n)``.

Ren et al., "MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning", ACL 2024, arXiv
2402.17263. Each A_i (rank, in/n) starts as LoRA's, each B_i (out/n, rank) at zero; s = alpha / rank. The
update has rank n * rank with the parameters of a LoRA of rank ``rank``. The merge in the authors' program is
wrong; here it is the matrix above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import attach_factored, load_factored
from intruscope.methods.lora import LORA_PARAMETERS, lora_numbers

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from torch import nn

    from intruscope.methods.contract import Options, Setting
    from intruscope.methods.factored import FactoredAttached

NUM_BLOCKS = Parameter(
    name="num_blocks", kind="int", default=2, least=1,
    source="ours: the paper chooses it by the task",
    meaning="n, the number of small adapters on the diagonal; it must divide both sides of every target.",
)  # fmt: skip


def _prepare(config: Any, options: Options) -> Any:
    from intruscope.methods.melora_layers import use_blocks

    return use_blocks(config, num_blocks=int(options["num_blocks"]))


def attach(model: nn.Module, setting: Setting, options: Options) -> FactoredAttached:
    """Put MELoRA on a model."""
    return attach_factored(model, setting, options, method=METHOD, prepare=_prepare)


def load(model: nn.Module, folder: Path) -> FactoredAttached:
    """Put a saved one on its base, to train on."""
    return load_factored(model, folder, method=METHOD, prepare=_prepare)


METHOD = Method(
    name="melora",
    title="MELoRA",
    paper="arXiv 2402.17263",
    source="intruscope",
    cost="rank * (in + out) numbers per matrix, as LoRA of that rank, for n times the rank; as an ordinary "
    "LoRA it is stored with the zeros outside the blocks, n times as large.",
    how_updated="The block-diagonal matrix of (alpha / rank) B_i A_i.",
    parameters=(*LORA_PARAMETERS, NUM_BLOCKS),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lora_numbers,
    max_rank=lambda num_out, num_in, options: min(
        int(options["rank"]) * int(options["num_blocks"]), num_out, num_in
    ),
    plain_lora=True,
)
