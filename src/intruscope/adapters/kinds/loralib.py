"""Checkpoints of loralib, LoRA's first library: ``X.lora_A``, ``X.lora_B``; alpha is not in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.kind import AdapterKind
from intruscope.adapters.kinds.lora import WORDS, update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.weights.stored import StoredTensor


def _recognises(tensors: Mapping[str, StoredTensor]) -> bool:
    return any(key.endswith((".lora_A", ".lora_B")) for key in tensors)


KIND = AdapterKind(
    name="loralib",
    title="loralib's LoRA",
    words=WORDS,
    update=update,
    required=frozenset({"down", "up"}),
    recognises=_recognises,
)
