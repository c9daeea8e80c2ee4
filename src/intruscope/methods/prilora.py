"""PRILoRA: ranks that grow with depth, and a first factor that is pruned by the size of its inputs.

Benedek & Wolf, "PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation", Findings of EACL 2024, arXiv
2401.11316. The first layer gets half the mean rank and the last 1.5 times the mean rank, linear in between.
At regular intervals, in each row of A, a share of the entries with the smallest |A_ij| times the running
norm of input feature j is set to zero; training lets them grow again. ``dW = (alpha / rank) B A``. The
interval, the share and the decay of the norms are as we remember the paper; all three are options.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from intruscope.methods.attached import PeftAttached, attach_peft, load_peft
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.factored import read_options, write_options
from intruscope.methods.lora import LORA_PARAMETERS, lora_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from torch import nn
    from transformers import TrainerCallback

    from intruscope.methods.contract import Options, Setting

_RECALLED = "arXiv 2401.11316, as we recall it"
PRUNE_EVERY = Parameter(
    name="prune_every", kind="int", default=40, least=1, source=_RECALLED,
    meaning="Optimiser steps between prunings.",
)  # fmt: skip
PRUNED_FRACTION = Parameter(
    name="pruned_fraction", kind="float", default=0.5, least=0.0, most=1.0, source=_RECALLED,
    meaning="Share of each row of A that is set to zero.",
)  # fmt: skip
NORM_MEMORY = Parameter(
    name="norm_memory", kind="float", default=0.9, least=0.0, most=0.9999, source="ours",
    meaning="Decay of the running norm of the inputs: the share that is kept at each forward pass.",
)  # fmt: skip


def ranks_by_depth(names: Sequence[str], mean: int) -> dict[str, int]:
    """A rank for each module: from half of the mean to one and a half times of it, linearly with depth.

    Args:
        names: Module names; the first whole number in a name is its layer. Modules without one get the mean.
        mean: At least 1; ranks are at least 1.
    """
    depths = {name: int(found[1]) for name in names if (found := re.search(r"\.(\d+)(?:\.|$)", f".{name}"))}
    least, most = min(depths.values(), default=0), max(depths.values(), default=0)
    if least == most:
        return dict.fromkeys(names, mean)
    first, last = mean / 2, 3 * mean / 2
    ranks = {
        name: max(1, round(first + (last - first) * (depth - least) / (most - least)))
        for name, depth in depths.items()
    }
    return {name: ranks.get(name, mean) for name in names}


class PriloraAttached(PeftAttached):
    """PRILoRA on a model.

    Args:
        model: PeftModel.
        options: All of them.
        seed: Noted in what is saved.
    """

    def __init__(self, model: Any, *, options: Options, seed: int, **rest: Any) -> None:
        from intruscope.methods.prilora_layers import Pruning

        super().__init__(model, **rest)
        self.options = options
        self.seed = seed
        self.pruning = Pruning(
            self._layers,
            every=int(options["prune_every"]),
            fraction=float(options["pruned_fraction"]),
            memory=float(options["norm_memory"]),
        )

    def callbacks(self) -> Sequence[TrainerCallback]:
        """The pruning."""
        return (self.pruning,)

    def _write(self, folder: Path) -> None:
        """An ordinary PEFT LoRA with a rank of its own in each layer, and our options beside it."""
        super()._write(folder)
        write_options(folder, "prilora", self.options, self.seed)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put PRILoRA on a model."""
    scaling = float(options["alpha"]) / int(options["rank"])

    def config(*, target_modules: list[str], **given: Any) -> Any:
        ranks = ranks_by_depth(target_modules, int(options["rank"]))
        # PEFT takes the first pattern that matches, and a pattern also matches the end of a name.
        patterns = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True)}
        alphas = {name: scaling * rank for name, rank in patterns.items()}
        return lora_config(
            options, target_modules=target_modules, rank_pattern=patterns, alpha_pattern=alphas, **given
        )

    return attach_peft(
        model,
        setting,
        config,
        method=METHOD,
        kind=PriloraAttached,
        options=options,
        seed=setting.seed,
    )


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved one on its base, to train on; the running norms begin anew."""
    options, seed = read_options(folder, METHOD)
    return load_peft(model, folder, PriloraAttached, options=options, seed=seed)


METHOD = Method(
    name="prilora",
    title="PRILoRA",
    paper="arXiv 2401.11316",
    source="intruscope",
    cost="LoRA of the mean rank, plus a running norm per input feature and a sort of A at each pruning.",
    how_updated="(alpha / rank) B A, with the same scale in every layer.",
    parameters=(*LORA_PARAMETERS, PRUNE_EVERY, PRUNED_FRACTION, NORM_MEMORY),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lambda num_out, num_in, options: int(options["rank"]) * (num_out + num_in),
    max_rank=lambda num_out, num_in, options: min(-(-3 * int(options["rank"]) // 2), num_out, num_in),
    plain_lora=True,
    departures=frozenset({"uneven_ranks"}),
)
