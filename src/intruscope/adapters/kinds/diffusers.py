"""LoRA files that diffusers wrote before it used PEFT: factors below attention processors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.kind import AdapterKind, ModuleKey
from intruscope.adapters.kinds.lora import update
from intruscope.errors import UnsupportedFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.stored import StoredTensor


def _recognises(tensors: Mapping[str, StoredTensor]) -> bool:
    return any(".processor." in key and key.endswith("_lora.down.weight") for key in tensors)


def _parse(key: str, adapter: AdapterSource) -> ModuleKey:
    """``attn1.processor.to_q_lora.down.weight`` is A of ``attn1.to_q``; ``to_out`` is ``to_out.0``.

    Text encoders beside the UNet say ``q_proj.lora_linear_layer.down.weight``.
    """
    words = key.split(".")
    if len(words) > 4 and words[-1] == "weight" and words[-2] in ("down", "up"):
        if words[-3] == "lora_linear_layer":
            return ModuleKey(".".join(words[:-3]), words[-2])
        if words[-4] == "processor" and words[-3].endswith("_lora"):
            leaf = words[-3].removesuffix("_lora")
            module = [*words[:-4], *(["to_out", "0"] if leaf == "to_out" else [leaf])]
            return ModuleKey(".".join(module), words[-2])
    raise UnsupportedFormat(
        "this key of diffusers is not read; those of attention processors and text encoders are",
        remedy="load it in diffusers, fuse it with fuse_lora, and scan the saved model",
        file=adapter.path,
        tensor=key,
    )


KIND = AdapterKind(
    name="diffusers",
    title="diffusers' old LoRA",
    words={},
    update=update,
    required=frozenset({"down", "up"}),
    parse=_parse,
    recognises=_recognises,
)
