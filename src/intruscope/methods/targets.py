"""Which matrices of a live model a method changes, and which it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.errors import UnsupportedFormat, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor, nn

    from intruscope.methods.contract import Method, Setting

_SHOWN = 6


def kind_of(module: nn.Module) -> str:
    """``linear``, ``conv1d`` (GPT-2's, stored (in, out)), or the class's own name."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return "linear"
    return "conv1d" if isinstance(module, Conv1D) else type(module).__name__


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer or Conv1D: (out, in), float32 or wider, sharing storage where it can."""
    import torch

    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide.T if kind_of(module) == "conv1d" else wide


def ends_with(name: str, ends: Collection[str]) -> bool:
    """Whether a module's name is one of these, or ends in one after a dot, as PEFT reads targets."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def targets_of(model: nn.Module, setting: Setting, method: Method) -> tuple[str, ...]:
    """Names of the modules that are to be changed.

    Args:
        model: A transformers model, nothing attached yet.
        setting: What was asked for.
        method: Whose kinds of layer they must be.

    Raises:
        UsageError: none matches, or one is trained whole as well.
        UnsupportedFormat: a layer of another kind, or one whose weight is tied to another module.
    """
    modules = dict(model.named_modules())
    whole = trained_whole(model, setting)
    if setting.targets == "all-linear":
        head = _heads(model)
        names = [
            name
            for name, module in modules.items()
            if kind_of(module) in ("linear", "conv1d") and name not in head and not ends_with(name, whole)
        ]
    else:
        names = [name for name in modules if ends_with(name, setting.targets)]
    if not names:
        _no_target(modules, setting)
    tied = _tied(model)
    for name in names:
        kind = kind_of(modules[name])
        if kind not in method.layers:
            expected = " or ".join(sorted(method.layers))
            raise UnsupportedFormat(
                f"{method.name} cannot change a layer of kind {printable(kind)}, only {expected}",
                remedy="choose other targets, or another method (see intruscope methods)",
                tensor=name,
            )
        if name in tied:
            raise UnsupportedFormat(
                f"the layer shares its weight with {printable(tied[name])}, so an update to one would "
                "silently "
                "change both",
                remedy="leave it out of the targets",
                tensor=name,
            )
        if ends_with(name, whole):
            raise UsageError(
                "the layer is both a target and to be trained in full",
                remedy="remove it from one of the two",
                tensor=name,
            )
    return tuple(names)


def _heads(model: nn.Module) -> set[str]:
    """Modules that a task puts on top: the output embeddings, and what a classifier has outside its body."""
    prefix = getattr(model, "base_model_prefix", "")
    body = getattr(model, prefix, None) if prefix else None
    if body is None or body is model:
        return set()
    inside = {id(module) for module in body.modules()}
    return {name for name, module in model.named_modules() if id(module) not in inside}


def trained_whole(model: nn.Module, setting: Setting) -> tuple[str, ...]:
    """What is trained whole: as asked for, and the new head of a model that is no language model."""
    heads: tuple[str, ...] = ()
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        outside = _heads(model)
        heads = tuple(
            name
            for name, module in model.named_children()
            if name in outside and next(module.parameters(), None) is not None
        )
    return tuple(dict.fromkeys((*setting.train_whole, *heads)))


def _tied(model: nn.Module) -> dict[str, str]:
    """Module to another one that holds the same weight."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and hasattr(weight, "data_ptr"):
            holders.setdefault(id(weight), []).append(name)
    return {
        name: next(other for other in names if other != name)
        for names in holders.values()
        if len(names) > 1
        for name in names
    }


def _no_target(modules: dict[str, nn.Module], setting: Setting) -> None:
    import difflib

    ends = sorted(
        {name.rpartition(".")[2] for name, m in modules.items() if kind_of(m) in ("linear", "conv1d")}
    )
    asked = [] if setting.targets == "all-linear" else [name.rpartition(".")[2] for name in setting.targets]
    like = [found for name in asked for found in difflib.get_close_matches(name, ends, n=2)]
    raise UsageError(
        f"no module's name ends in {', '.join(map(printable, asked)) or 'all-linear'}; this model has "
        f"{', '.join(ends[: _SHOWN * 2]) or 'no linear layers'}",
        remedy=f"did you mean {' or '.join(like)}?"
        if like
        else "use names of this model's modules, or all-linear",
    )
