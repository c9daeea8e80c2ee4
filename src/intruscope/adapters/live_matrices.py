"""The matrices of a model while it is trained: as a scan would name them, and as they are right now.

A parameter of the model itself is read as it is; a plain LoRA layer as its factors; every other layer of PEFT
by merging a float32 copy of that layer, which is right for all that can be merged.

Shape suffixes: O out, I in, R rank, F rows of a whole (fused) matrix.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.adapters.kinds.lora import moves_the_base
from intruscope.errors import UnsupportedFormat
from intruscope.weights.architecture import module_classes
from intruscope.weights.layout import base_matrices
from intruscope.weights.memory import memory_source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from intruscope.weights.views import TensorView

    Form = tuple[Tensor, Tensor] | Tensor
    """The tuned matrix (O, I), or the factors (O, R), (R, I) of its update."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveMatrix:
    """One matrix that training changes.

    Attributes:
        view: Its name, kind and layer, and where in the parameter it lies.
        parameter: The model's own weight.
        layer: The PEFT layer around it; None where the weight itself is trained.
        is_low_rank: The update is a pair of factors.
        moves_base: The start of the method changed the model's own weight (PiSSA, OLoRA, OSF and the like).
    """

    view: TensorView
    parameter: nn.Parameter
    layer: Any
    is_low_rank: bool
    moves_base: bool

    @property
    def name(self) -> str:
        """As a scan names it."""
        return self.view.name

    @property
    def keeps_base(self) -> bool:
        """Whether the model's own weight is the base's throughout: trained beside, and not moved."""
        return self.layer is not None and not self.moves_base

    def weight(self) -> Tensor:
        """The model's own weight as it is now, (O, I), on the CPU; a copy in float32 or wider."""
        return self.view.cut(_wide(self.parameter.detach()))

    def now(self) -> Form:
        """The tuned matrix, or the factors of its update, on the CPU in float32 or wider; copies.

        Raises:
            UnsupportedFormat: a layer that cannot be merged has no matrix of its own.
        """
        if self.layer is None:
            return self.weight()
        if not self.is_low_rank:
            return self.view.cut(_wide(_merged(self.layer, self.name)))
        import torch

        layer = self.layer
        lefts, rights = [], []
        for adapter in _active(layer):
            lefts.append(_wide(layer.lora_B[adapter].weight.detach()) * layer.scaling[adapter])
            rights.append(_wide(layer.lora_A[adapter].weight.detach()))
        left_FR = torch.cat(lefts, dim=1)
        return self.view.select_rows(left_FR), torch.cat(rights)


def live_matrices(model: nn.Module) -> list[LiveMatrix]:
    """The linear layers of the blocks that training changes, in the model's order.

    Args:
        model: A transformers model, or a PeftModel around one, on one device.

    Raises:
        UnsupportedFormat: its weights are spread over processes, or packed.
    """
    whole: Any = model
    inner = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    layers = _peft_layers(inner)
    parameters: dict[str, nn.Parameter] = {}
    around: dict[str, Any] = {}
    for name, parameter in inner.named_parameters():
        path, layer = _owner(name, layers)
        if path is None or (layer is None and not parameter.requires_grad):
            continue
        if type(parameter.data).__name__ == "DTensor" or (parameter.dim() > 0 and parameter.numel() == 0):
            raise UnsupportedFormat(
                "the weight is sharded across processes, but every process needs the whole of it",
                remedy="watch a run without FSDP or ZeRO-3, or scan its checkpoints",
                tensor=path,
            )
        parameters[path], around[path] = parameter, layer
    configs = getattr(model, "peft_config", {}).values()
    moves_base = any(_moves_base(config) for config in configs)
    source = memory_source(
        parameters, config=inner.config.to_dict(), name="live", classes=module_classes(inner)
    )
    listing = base_matrices(source)
    found = []
    for stored, views in listing.matrices.items():
        layer = around[stored]
        for view in views:
            if view.scope != "paper":
                continue
            found.append(
                LiveMatrix(
                    view=view,
                    parameter=parameters[stored],
                    layer=layer,
                    is_low_rank=not moves_base and layer is not None and _is_plain_lora(layer),
                    moves_base=moves_base and layer is not None,
                )
            )
    return found


def _peft_layers(inner: nn.Module) -> dict[str, Any]:
    """Module names of PEFT's layers, with their layers; and of its other wrappers, with None."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    for name, module in inner.named_modules():
        if isinstance(module, BaseTunerLayer):
            found[name] = module
        elif isinstance(module, AuxiliaryTrainingWrapper):
            found[name] = None
    return found


def _owner(name: str, layers: dict[str, Any]) -> tuple[str | None, Any]:
    """The stored name of a parameter and the PEFT layer around it; (None, None) for the adapters' own."""
    owners = [path for path in layers if name.startswith(path + ".")]
    if not owners:
        return name, None
    path = min(owners, key=len)
    rest = name.removeprefix(path + ".")
    if layers[path] is None or not rest.startswith("base_layer."):
        return None, None
    while rest.startswith("base_layer."):
        rest = rest.removeprefix("base_layer.")
    return (f"{path}.{rest}", layers[path]) if "." not in rest else (None, None)


def _active(layer: Any) -> list[str]:
    return [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]


def _moves_base(config: Any) -> bool:
    """Whether the start of a method changes the weights it stands on."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    return kind == "OSF" or moves_the_base(getattr(config, "init_lora_weights", True))


def _is_plain_lora(layer: Any) -> bool:
    """A Linear or Conv1D layer of LoRA without variants, whose update is scaling · B A."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.lora_variant or any(layer.lora_bias.values()):
        return False
    return bool(_active(layer)) and not layer.merged


def _merged(layer: Any, name: str) -> Tensor:
    """The weight of a float32 copy of the layer after PEFT has merged it."""
    import torch

    merged = copy.deepcopy(layer)
    if merged.get_base_layer().weight.dtype != torch.float64:
        merged = merged.float()
    try:
        if not merged.merged:
            merged.merge(safe_merge=True)
        weight: Tensor = merged.get_base_layer().weight.detach()
        return weight
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        raise UnsupportedFormat(
            f"this {type(layer).__name__} layer cannot be merged ({error})",
            remedy="watch a method whose update is one matrix",
            tensor=name,
        ) from error


def _wide(tensor: Tensor) -> Tensor:
    import torch

    return tensor.to("cpu", torch.promote_types(tensor.dtype, torch.float32))
