"""A base beside its fine-tune as a module of its own, which shares every tensor that both have.

Switching one model between its two states costs as much as a forward pass of a small model, for every token
(PEFT's ``disable_adapter`` asks all layers for their status first). A second module costs nothing per token,
and no memory for weights.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, Any

from intruscope.adapters.in_memory import check_unmoved, wrapper_layers
from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def shared_twin(module: nn.Module, replaced: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A copy of a module whose parameters and buffers are those of the original.

    Args:
        module: Not changed.
        replaced: Parameters that the copy has instead, by the ``id`` of the original's.
    """
    memo: dict[int, Any] = {id(each): each for each in chain(module.parameters(), module.buffers())}
    memo.update(replaced or {})
    return copy.deepcopy(module, memo)


def base_beside(tuned: Any) -> nn.Module:
    """The base inside a PeftModel as a module of its own, in evaluation mode.

    Args:
        tuned: A PeftModel; not changed. Later changes of its base's weights are seen by the result.

    Raises:
        UsageError: its own weights are no longer the base's (PiSSA and its kin, trained biases, a merged
            adapter), or its adapter is a prompt.
    """
    for config in tuned.peft_config.values():
        check_unmoved(config)
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise UsageError(
                f"a {config.peft_type.value} adapter adds tokens to the input and cannot be taken off",
                remedy="give the base as a model of its own",
            )
    wrapper_layers(tuned.get_base_model())
    return without_adapters(shared_twin(tuned)).eval()


def without_adapters(tuned: Any) -> nn.Module:
    """The base of a PeftModel, which is taken apart: pass a copy."""
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(tuned.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # unload would leave the trained copy in
            parent, _, leaf = name.rpartition(".")
            setattr(tuned.get_submodule(parent), leaf, module.original_module)
    plain: nn.Module = tuned.unload()
    return plain
