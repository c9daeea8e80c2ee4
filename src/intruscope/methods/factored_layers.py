"""PEFT's LoRA layer with factors of our own, for methods that PEFT does not ship.

PEFT's forward is ``base(x) + scaling * lora_B(lora_A(dropout(x)))``, whatever these two modules are; saving,
loading, freezing and switching go by their parameters and buffers. So a method whose update is a product of
two linear maps is two small modules, and merging needs only their matrices.

Shape suffixes: O out, I in, R rank of the product.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from peft.tuners.lora.layer import Linear
from peft.utils.other import transpose
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor


class Factor(Protocol):
    """One of the two maps of a low-rank update; also a module with a parameter ``weight``."""

    def dense(self) -> Tensor:
        """Its matrix: (R, I) of the first, (O, R) of the second."""


class MakeFactors(Protocol):
    """Makes the two factors of a layer."""

    def __call__(self, in_features: int, out_features: int, rank: int) -> tuple[nn.Module, nn.Module]:
        """The first (in to rank) and the second (rank to out), in float32, on the CPU."""


class FactoredLinear(Linear):  # type: ignore[misc]  # PEFT is not typed
    """``lora.Linear`` for nn.Linear and Conv1D, whose factors are made by ``make``.

    The factors are float32 whatever the base is, as PEFT casts its own.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, make: MakeFactors, **kwargs: Any) -> None:
        self._make = make
        super().__init__(base_layer, adapter_name, **kwargs)
        self.is_target_conv_1d_layer = self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    def update_layer(self, adapter_name: str, r: int, **kwargs: Any) -> None:
        """Put PEFT's own factors there, and replace them."""
        super().update_layer(adapter_name, r, **kwargs)
        device = self.lora_A[adapter_name].weight.device
        down, up = self._make(self.in_features, self.out_features, r)
        self.lora_A[adapter_name] = down.to(device)
        self.lora_B[adapter_name] = up.to(device)
        self.set_adapter(self.active_adapters, inference_mode=kwargs["config"].inference_mode)

    def dense_factors(self, adapter: str = "default") -> tuple[Tensor, Tensor]:
        """Factors (R, I) and (O, R), float32 or wider; the update is ``scaling`` times their product."""
        down, up = cast("Factor", self.lora_A[adapter]), cast("Factor", self.lora_B[adapter])
        down_RI, up_OR = down.dense(), up.dense()
        wide = torch.promote_types(down_RI.dtype, torch.float32)
        return down_RI.to(wide), up_OR.to(wide)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update in the orientation of the base layer; PEFT merges and unmerges by it."""
        down_RI, up_OR = self.dense_factors(adapter)
        update: Tensor = transpose(self.scaling[adapter] * (up_OR @ down_RI), self.fan_in_fan_out)
        return update


class PlainFactor(nn.Linear):
    """A factor that is its weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def dense(self) -> Tensor:
        """Its weight."""
        return self.weight


def use_factors(config: LoraConfig, make: MakeFactors) -> LoraConfig:
    """Let a config build :class:`FactoredLinear`; PEFT does not save this, so do it again on loading."""
    layer = partial(FactoredLinear, make=make)
    config._register_custom_module({nn.Linear: layer, Conv1D: layer})
    return config
