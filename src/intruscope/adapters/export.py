"""Writing PEFT adapters: the original's config with the needed fields changed, and new weights.

Servers such as vLLM read only ``r``, ``lora_alpha`` and ``use_rslora`` and drop patterns without a word, so
the plain form is one rank for all modules and a scaling of one.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from intruscope.weights.safetensors_file import read_metadata
from intruscope.weights.written import write_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.written import HashedFile

WEIGHTS_NAME = "adapter_model.safetensors"


def plain_config(adapter: AdapterSource, rank: int) -> dict[str, Any]:
    """The config for one rank in all modules, scaling one, no patterns.

    Args:
        adapter: Of format ``peft``.
        rank: r.

    Raises:
        MalformedInput: the config changed into something else since it was opened.
    """
    raw = _raw(adapter)
    return {
        **raw,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        **_plain_start(raw),
    }


def compact_config(adapter: AdapterSource, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The config for a rank of their own in some modules, which then have a scaling of one.

    Args:
        adapter: Of format ``peft``.
        ranks: By the name that PEFT looks patterns up by. Each becomes the first pattern that matches it.

    Raises:
        MalformedInput: as :func:`plain_config`.
    """
    raw = _raw(adapter)
    ordered, alphas = rank_patterns(ranks, rslora=bool(raw.get("use_rslora")))
    return {
        **raw,
        "rank_pattern": {**ordered, **_others(raw.get("rank_pattern"), ordered)},
        "alpha_pattern": {**alphas, **_others(raw.get("alpha_pattern"), ordered)},
        **_plain_start(raw),
    }


def rank_patterns(ranks: Mapping[str, int], *, rslora: bool) -> tuple[dict[str, int], dict[str, float]]:
    """``rank_pattern`` and ``alpha_pattern`` that give modules a rank of their own and a scaling of one.

    Args:
        ranks: By the name that PEFT looks patterns up by.
        rslora: The scaling is alpha / sqrt(r) instead of alpha / r.
    """
    # Longer names first: a pattern also matches the end of a name.
    ordered = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True)}
    return ordered, {name: math.sqrt(rank) if rslora else rank for name, rank in ordered.items()}


def _others(patterns: Any, taken: Mapping[str, int]) -> dict[str, Any]:
    return {name: value for name, value in (patterns or {}).items() if name not in taken}


def _plain_start(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Initialisations that ask something of the rank (orthogonal: even) would stop it from loading."""
    return {"init_lora_weights": True} if isinstance(raw.get("init_lora_weights"), str) else {}


def _raw(adapter: AdapterSource) -> dict[str, Any]:
    assert adapter.config is not None
    return dict(adapter.config.raw)


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """The config as PEFT writes it."""
    return json.dumps(config, indent=2, allow_nan=False).encode()


def write_adapter_weights(
    file: HashedFile, adapter: AdapterSource, replaced: Mapping[str, torch.Tensor]
) -> None:
    """Write an adapter's weights with some tensors replaced; all others keep their bytes.

    Args:
        file: Open and empty.
        adapter: The original.
        replaced: Stored key to the new tensor.

    Raises:
        MalformedInput: the original changed since planning.
        OSError: no room.
    """
    tensors: dict[str, StoredTensor | torch.Tensor] = {**adapter.tensors, **replaced}
    from_safetensors = adapter.path is not None and adapter.path.suffix == ".safetensors"
    write_safetensors(file, tensors, read_metadata(adapter.on_disk) if from_safetensors else {"format": "pt"})
