"""Which model a profile trains: the class by the base's config, without weights or with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from intruscope.adapters.live_models import class_for, language_class, quiet
from intruscope.errors import UnsupportedFormat, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intruscope.profiling.records import HeadKind


def head_of(config: Any, asked: str, *, file: Path) -> tuple[type[nn.Module], HeadKind]:
    """The class of the model, and what its loss is of.

    Args:
        config: transformers'.
        asked: ``language``, ``classifier``, or ``auto``: a classifier where the base is one.
        file: Of the base, for messages.

    Raises:
        UnsupportedFormat: the model type has no such head.
    """
    classifier = class_for(AutoModelForSequenceClassification, config)
    is_one = classifier is not None and classifier.__name__ in (config.architectures or ())
    if asked == "language" or (asked == "auto" and not is_one):
        return language_class(config, file=file)
    if classifier is None:
        raise UnsupportedFormat(
            f"transformers has no classifier for the model type {config.model_type}",
            remedy="leave --head out",
            file=file,
        )
    return classifier, "classifier"


def skeleton(cls: type[nn.Module], config: Any) -> nn.Module:
    """A model with names and shapes, and no memory behind them."""
    with quiet(), torch.device("meta"):
        return cls(config)


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the body's blocks, from the input: the longest list of modules that lies in no other list."""
    lists: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{o}.") for o in lists):
            lists[name] = module
    if not lists:
        return ()
    longest = max(lists, key=lambda name: len(lists[name]))
    return tuple(f"{longest}.{number}" for number in range(len(lists[longest])))


def last_blocks(model: nn.Module, count: int) -> tuple[str, ...]:
    """The last so many of them.

    Raises:
        UsageError: the model has fewer, or the count is none.
    """
    blocks = blocks_of(model)
    if not 0 < count <= len(blocks):
        raise UsageError(
            f"--last-layers {count} is out of range: the model has {len(blocks)} blocks",
            remedy=f"use a number from 1 to {len(blocks)}",
        )
    return blocks[-count:]
