"""A PEFT model as :class:`~intruscope.methods.contract.Attached`: updates, merging, saving and loading.

Every update is obtained in the one way that is right for all mergeable methods: a float32 copy of the layer
is merged by PEFT's safe merge, and the weights before the method came are taken from the result.

Shape suffixes: O out, I in.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import IntruscopeError, MalformedInput, UsageError, printable
from intruscope.methods.targets import targets_of, trained_whole, weight_of
from intruscope.weights.output import whole_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import TrainerCallback

    from intruscope.methods.contract import Method, Setting

ADAPTER = "default"
"""PEFT's name for the adapter that we make and load."""


class PeftAttached:
    """A model with one PEFT adapter on it.

    Args:
        model: PeftModel whose adapter is called ``default``.
        before: Module name to its weight (out, in) before the adapter came, of those that the start changed.
        start: The adapter's state at the start, where the base was changed by it (PiSSA, OLoRA): saving then
            turns the adapter into an ordinary LoRA of twice the rank against the unchanged base.
    """

    def __init__(
        self,
        model: Any,
        *,
        before: Mapping[str, Tensor] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self._before = dict(before or {})
        self._start = dict(start) if start is not None else None
        self._layers = tuner_layers(model)
        self.names = tuple(self._layers)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Everything that is trained, by its name in ``model``."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW; vectors (biases, norms, scales) without decay."""
        return adamw(self.trainable(), lr=lr, weight_decay=weight_decay)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """None are needed."""
        return ()

    def update(self, name: str) -> Tensor:
        """The update of one matrix: (out, in), float32, against the weights before the method came.

        Raises:
            UsageError: the method does not change a matrix of that name.
        """
        layer = self._layer(name)
        before_OI = self._before.get(name)
        if before_OI is None:
            before_OI = weight_of(layer.get_base_layer())
        merged = copy.deepcopy(layer).float()
        merged.merge(safe_merge=True)
        after_OI = weight_of(merged.get_base_layer())
        # A Trainer moves the model to its device after the method came.
        return (after_OI - before_OI.to(after_OI.device)).contiguous()

    def merged(self) -> nn.Module:
        """A float32 copy of the base model with the update in its weights."""
        model: nn.Module = copy.deepcopy(self.model).float().merge_and_unload(safe_merge=True)
        return model

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does; relative to the unchanged base, whatever the start did to it.

        Raises:
            OutputConflict: the folder exists and is not empty.
            ResourceExhausted: no room.
        """
        from intruscope.adapters.live_models import quiet

        with whole_folder(folder) as whole, quiet():
            self._write(whole)

    def _write(self, folder: Path) -> None:
        """Fill an empty folder."""
        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import load_file, save_file

        if self._start is None:
            self.model.save_pretrained(str(folder))
            return
        with tempfile.TemporaryDirectory() as scratch:
            save_file(self._start, str(Path(scratch) / "adapter_model.safetensors"))
            self.model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=scratch)
        # The conversion leaves out what is trained whole: a classifier's head.
        path = folder / "adapter_model.safetensors"
        converted, state = load_file(path), get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        rest = {key: value.contiguous() for key, value in state.items() if ".lora_" not in key}
        save_file({**rest, **converted}, path, metadata={"format": "pt"})

    def _layer(self, name: str) -> Any:
        if name in self._layers:
            return self._layers[name]
        raise UsageError(
            f"the method does not change this matrix; it changes {len(self.names)}, such as "
            f"{printable(self.names[0])}",
            remedy="use a name from .names",
            tensor=name,
        )


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """A PeftModel without its adapter: the base, unless the method changed the base's weights.

    What is trained afterwards is what was trained before.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with model.disable_adapter():
            yield
    finally:  # PEFT makes all of an adapter's parameters trainable, also those that the method keeps fixed
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def tuner_layers(model: Any) -> dict[str, Any]:
    """PEFT's layers by the name that their module has in the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Any] = {}
    for name, module in model.base_model.model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, BaseTunerLayer) and not inside:
            found[name] = module
    return found


def attach_peft(
    model: nn.Module,
    setting: Setting,
    make_config: Callable[..., Any],
    *,
    method: Method,
    kind: type[PeftAttached] = PeftAttached,
    **extra: Any,
) -> PeftAttached:
    """Put a PEFT adapter on a model; the model is changed in place, as ``get_peft_model`` does.

    Args:
        model: A transformers model.
        setting: Targets, modules trained whole, seed.
        make_config: From ``target_modules``, ``modules_to_save`` and ``task_type`` to PEFT's config.
        method: Its description. Where it moves the base, the weights before are kept, and saving converts.
        kind: Class of what is returned.
        extra: Further arguments of ``kind``.

    Raises:
        UsageError: no target matches, or PEFT refuses an option.
        UnsupportedFormat: a target's layer is of another kind.
    """
    import torch
    from peft import get_peft_model
    from peft.utils import get_peft_model_state_dict

    from intruscope.adapters.live_models import quiet

    names = targets_of(model, setting, method)
    moves_base = "moves_base" in method.departures
    before = {name: weight_of(model.get_submodule(name)).clone() for name in names} if moves_base else None
    config = make_config(
        target_modules=list(names),
        modules_to_save=list(trained_whole(model, setting)) or None,
        task_type=task_type(model),
    )
    with quiet():  # restores the random state
        torch.manual_seed(setting.seed)
        try:
            peft_model = get_peft_model(model, config, ADAPTER)
        except IntruscopeError:
            raise
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"PEFT rejects these options of {method.name} for this model ({printable(error)})",
                remedy="change the options or the targets",
            ) from error
    if moves_base:
        state = get_peft_model_state_dict(peft_model, adapter_name=ADAPTER)
        extra["start"] = {key: value.detach().clone() for key, value in state.items()}
    return kind(peft_model, before=before, **extra)


def load_peft(
    model: nn.Module, folder: Path, kind: type[PeftAttached] = PeftAttached, **extra: Any
) -> PeftAttached:
    """Put a saved adapter on its base, trainable.

    Args:
        model: The base.
        folder: What was saved.
        kind: Class of what is returned.
        extra: Further arguments of ``kind``.

    Raises:
        MalformedInput: it is none, or does not fit.
    """
    from peft import PeftModel

    from intruscope.adapters.live_models import quiet

    try:
        with quiet():
            peft_model = PeftModel.from_pretrained(model, str(folder), ADAPTER, is_trainable=True)
    except Exception as error:  # whatever a foreign folder provokes in there
        raise MalformedInput(
            f"PEFT could not load the adapter ({printable(error)})",
            remedy="check that it is complete and was trained on this base",
            file=folder,
        ) from error
    return kind(peft_model, **extra)


def task_type(model: nn.Module) -> str | None:
    """PEFT's word for the model's head; it decides the class and that a classifier's head is trained."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if name.endswith(("ForCausalLM", "LMHeadModel")) else None


def adamw(trainable: Sequence[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float) -> Optimizer:
    """AdamW; vectors (biases, norms, scales) without decay."""
    import torch

    decayed = [p for _, p in trainable if p.ndim >= 2]
    rest = [p for _, p in trainable if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    # As transformers' Trainer has it by default: many passes over the weights and their moments in one.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)
