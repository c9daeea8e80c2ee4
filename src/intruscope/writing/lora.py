"""Any set of low-rank updates as a LoRA adapter that PEFT and servers load.

The plain form is one rank for all modules and a scaling of one, since servers such as vLLM read only ``r``,
``lora_alpha`` and ``use_rslora`` and silently ignore patterns.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.adapters.export import WEIGHTS_NAME, config_bytes, rank_patterns
from intruscope.adapters.folder import CONFIG_NAME, open_adapter
from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.weights.matrices import Finding
from intruscope.weights.written import write_safetensors
from intruscope.writing.folder import damaged
from intruscope.writing.naming import HEADS_OF_TASK, target_modules

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch

    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.writing.folder import OutputFolder
    from intruscope.writing.modules import TargetModule
    from intruscope.writing.naming import AdapterNames
    from intruscope.writing.rest import Saved

SERVER_RANK = 16
"""vLLM's default ``max_lora_rank``; other servers have similar limits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraAdapter:
    """A LoRA adapter before it is written. W = W₀ + B A in every module.

    Attributes:
        base: The model it is for.
        names: How the model names its modules.
        modules: Those with factors.
        others: Names of all other modules that hold matrices.
        factors: B (O, R) and A (R, I) of each module, by its stored name, without padding.
        rank: The rank to which all factors are padded with zeros; None if each module keeps its own.
        saved: What is stored whole beside the factors.
    """

    base: ModelSource
    names: AdapterNames
    modules: tuple[TargetModule, ...]
    others: Collection[str]
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int | None
    saved: Saved

    def tensors(self) -> dict[str, StoredTensor | torch.Tensor]:
        """The weights file: key to tensor, as PEFT stores them."""
        tensors: dict[str, StoredTensor | torch.Tensor] = {}
        for module in self.modules:
            up_OR, down_RI = self.factors[module.name]
            rank = self.rank or up_OR.shape[1]
            tensors.update(_module_tensors(module, _padded(up_OR, rank, 1), _padded(down_RI, rank, 0)))
        return {**tensors, **self.saved.tensors}

    def config(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``: a scaling of one for every module."""
        ranks = {module.module: self.factors[module.name][0].shape[1] for module in self.modules}
        common, revision = self.rank, self.base.revision
        patterns: tuple[dict[str, int], dict[str, float]] = ({}, {})
        if common is None:
            common = Counter(ranks.values()).most_common(1)[0][0]
            patterns = rank_patterns({n: rank for n, rank in ranks.items() if rank != common}, rslora=False)
        saved = list(self.saved.modules)
        task = self.names.task
        if task in HEADS_OF_TASK and not any(name.endswith(HEADS_OF_TASK[task]) for name in saved):
            task = None  # PEFT's class of that task would look for a head that is not here
        return {
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": self.base.name.partition("@")[0] if revision else self.base.name,
            "revision": revision,
            "r": common,
            "lora_alpha": common,
            "use_rslora": False,
            "use_dora": False,
            "rank_pattern": patterns[0],
            "alpha_pattern": patterns[1],
            "target_modules": target_modules(set(ranks), self._without_factors(ranks)),
            "modules_to_save": saved or None,
            "bias": "all" if self.saved.biases else "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": any(module.kind == "conv1d" for module in self.modules),
            "init_lora_weights": True,
            "inference_mode": True,
        }

    def _without_factors(self, wrapped: Collection[str]) -> set[str]:
        """All other modules, as far as they are known."""
        if self.names.modules:
            return set(self.names.modules) - set(wrapped)
        stored = {name.rpartition(".")[0] for name in self.base.tensors}
        return (stored | set(self.others)) - set(wrapped) - {module.name for module in self.modules}


def write_lora(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor | torch.Tensor], target: OutputFolder
) -> None:
    """Write the weights and the config of an adapter, and open it again.

    Args:
        config: Of :meth:`LoraAdapter.config`.
        tensors: Of :meth:`LoraAdapter.tensors`.
        target: Where to write.

    Raises:
        MalformedInput: a stored tensor changed since planning, or what was written reads back differently.
        OSError: there is no room.
    """
    target.write(WEIGHTS_NAME, lambda file: write_safetensors(file, tensors, {"format": "pt"}))
    target.write(CONFIG_NAME, config_bytes(config))
    written = {name: tuple(tensor.shape) for name, tensor in open_adapter(target.path).tensors.items()}
    if written != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise damaged(WEIGHTS_NAME)


def server_rank_findings(rank: int, advice: str = "") -> list[Finding]:
    """A warning if servers reject an adapter of this rank by default."""
    if rank <= SERVER_RANK:
        return []
    message = (
        f"the adapter's rank is {rank}; many servers accept at most {SERVER_RANK} by default "
        f"(vLLM: raise it with --max-lora-rank){advice}"
    )
    return [Finding(code="rank-above-servers", severity="warning", message=message)]


def _module_tensors(
    module: TargetModule, up_OR: torch.Tensor, down_RI: torch.Tensor
) -> dict[str, torch.Tensor]:
    place = PEFT_PREFIX + module.module
    if module.kind == "embedding":
        return {f"{place}.lora_embedding_A": down_RI, f"{place}.lora_embedding_B": up_OR}
    if module.kind == "conv":
        down_RI = down_RI.reshape(len(down_RI), *module.kernel)
        up_OR = up_OR.reshape(*up_OR.shape, *([1] * (len(module.kernel) - 1)))
    return {f"{place}.lora_A.weight": down_RI, f"{place}.lora_B.weight": up_OR}


def _padded(factor: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """The factor with directions of zeros up to a rank."""
    import torch

    missing = list(factor.shape)
    missing[axis] = rank - factor.shape[axis]
    return torch.cat([factor, factor.new_zeros(missing)], dim=axis).contiguous()
