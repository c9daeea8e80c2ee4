"""Full fine-tuning: all parameters are trained, or all parameters of the targets if some are named.

Nothing is added to the model. A copy of the watched matrices is kept to compute the update.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.methods.attached import adamw
from intruscope.methods.contract import Method, any_rank
from intruscope.methods.targets import ends_with, targets_of, trained_whole, weight_of
from intruscope.weights.output import whole_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import TrainerCallback

    from intruscope.methods.contract import Options, Setting


class FullAttached:
    """A model that is trained itself.

    Args:
        model: What is trained.
        before: Name of each matrix to its module before training.
    """

    def __init__(self, model: nn.Module, before: dict[str, nn.Module]) -> None:
        self.model = model
        self._before = before
        self.names = tuple(before)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Everything that is trained, by its name."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def optimizer(self, *, lr: float, weight_decay: float = 0.0) -> Optimizer:
        """AdamW; vectors (biases, norms) without decay."""
        return adamw(self.trainable(), lr=lr, weight_decay=weight_decay)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """None are needed."""
        return ()

    def update(self, name: str) -> Tensor:
        """The weights minus those before: (out, in), float32.

        Raises:
            UsageError: no matrix of that name is watched.
        """
        if name not in self._before:
            raise UsageError(
                f"this matrix is not among the {len(self.names)} watched ones, such as "
                f"{printable(self.names[0])}",
                remedy="use a name from .names",
                tensor=name,
            )
        now_OI = weight_of(self.model.get_submodule(name))
        # A Trainer moves the model to its device after the method came.
        return (now_OI - weight_of(self._before[name]).to(now_OI.device)).contiguous()

    def merged(self) -> nn.Module:
        """A float32 copy of the model."""
        return copy.deepcopy(self.model).float()

    def save(self, folder: Path) -> None:
        """Write the model as transformers does.

        Raises:
            OutputConflict: the folder exists and is not empty.
        """
        from intruscope.adapters.live_models import quiet

        model: Any = self.model
        with whole_folder(folder) as whole, quiet():
            model.save_pretrained(str(whole))


def attach(model: nn.Module, setting: Setting, options: Options) -> FullAttached:  # noqa: ARG001
    """Make a model trainable, all of it or the targets."""
    everything = setting.targets == "all-linear"
    names = targets_of(model, setting, METHOD)
    trained = (*names, *trained_whole(model, setting))
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        parameter.requires_grad_(everything or ends_with(module, trained))
    return FullAttached(model, {name: copy.deepcopy(model.get_submodule(name)) for name in names})


def load(model: nn.Module, folder: Path) -> FullAttached:
    """A saved model, whose updates are against ``model``.

    Raises:
        MalformedInput: transformers does not load it, or it is another model.
    """
    from intruscope.adapters.live_models import quiet, without_kernels
    from intruscope.methods.contract import Setting

    cls: Any = type(model)
    try:
        with quiet():
            config = without_kernels(cls.config_class.from_pretrained(str(folder)))
            tuned = cls.from_pretrained(str(folder), config=config, dtype=next(model.parameters()).dtype)
    except Exception as error:  # whatever a foreign folder provokes in there
        raise MalformedInput(
            f"transformers could not load the model ({printable(error)})",
            remedy="check that the folder is complete",
            file=folder,
        ) from error
    names = targets_of(model, Setting(), METHOD)
    return FullAttached(tuned, {name: model.get_submodule(name) for name in names})


METHOD = Method(
    name="full",
    title="Full fine-tuning",
    paper="arXiv 2410.21228",
    source="intruscope",
    cost="in * out parameters per matrix; with gradients and two moments of each, four times the model's "
    "memory.",
    how_updated="The weights minus a copy from before training.",
    parameters=(),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=lambda num_out, num_in, options: num_out * num_in,  # noqa: ARG005
    max_rank=any_rank,
    departures=frozenset({"trains_base"}),
)
