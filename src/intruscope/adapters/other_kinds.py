"""Adapters that are no LoRA (OFT, LoHa, VeRA and the like): merged by PEFT into a checkpoint that is read.

They are not read from their files, since each kind has its own arithmetic; PEFT has it. The merge is made in
float32 on the base as it is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.config import PROMPTS, AdapterConfig
from intruscope.adapters.folder import CONFIG_NAME, AdapterSource
from intruscope.adapters.live_merge import host_class, merge_in_memory, untie, with_labels
from intruscope.adapters.live_models import (
    build,
    config_of,
    language_class,
    offline,
    quiet,
    read_tensors,
    require,
)
from intruscope.errors import MalformedInput, UnsupportedFormat, printable
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.strict_json import read_json_object

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.weights.source import ModelSource

_WEIGHTS_NAME = "adapter_model.safetensors"


def other_kind(folder: Path) -> str | None:
    """PEFT's name of a kind of adapter that is not read from its files, but that can be merged.

    Args:
        folder: Of an adapter, or one of its files.

    Returns:
        None for a LoRA, for prompts (which change no matrix), and for what is no PEFT folder.
    """
    config = (folder if folder.is_dir() else folder.parent) / CONFIG_NAME
    if not config.is_file():
        return None
    kind = read_json_object(config).get("peft_type")
    return kind if isinstance(kind, str) and kind != "LORA" and kind not in PROMPTS else None


def merge_other_kind(base: ModelSource, folder: Path, out: Path) -> None:
    """Merge an adapter of any kind into its base, and save that as a checkpoint.

    Args:
        base: Opened.
        folder: Of the adapter, in safetensors.
        out: A folder to make.

    Raises:
        UsageError: transformers or PEFT is not installed.
        UnsupportedFormat: a task that cannot be told, or weights in pickles.
        MalformedInput: PEFT cannot load or merge it.
        OSError: no room.
    """
    import torch

    require("peft")
    folder = folder if folder.is_dir() else folder.parent
    if not (folder / _WEIGHTS_NAME).is_file():
        fact = f"got no {_WEIGHTS_NAME}, expected one: other kinds than LoRA are read from safetensors alone"
        raise UnsupportedFormat(fact, remedy="save the adapter again with PEFT", file=folder)
    config = config_of(base)
    told = AdapterConfig(path=folder / CONFIG_NAME, base_name=None, rank=1, alpha=1.0)
    adapter = AdapterSource(
        name=str(folder),
        path=folder / _WEIGHTS_NAME,
        format="peft",
        config=told,
        tensors=read_header(folder / _WEIGHTS_NAME),
        inputs=(),
    )
    try:
        language, _ = language_class(config, file=base.path)
    except UnsupportedFormat:
        language = None
    cls, head = host_class(adapter, config, language)
    if head == "classes":
        config = with_labels(config, adapter)
    host, _ = build(cls, config, read_tensors(base), dtype=torch.float32, file=base.path)
    untie(host)
    merged: Any = merge_in_memory(_wrapped(host, folder))
    merged.save_pretrained(str(out))


def _wrapped(host: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    try:
        with quiet(), offline():
            wrapped: nn.Module = PeftModel.from_pretrained(host, str(folder), local_files_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, AttributeError) as error:
        raise MalformedInput(
            f"got an adapter that PEFT cannot load ({printable(error)}), expected a sound one for this base",
            remedy="check its config and weights, and that it is for this base",
            file=folder,
        ) from error
    return wrapped
