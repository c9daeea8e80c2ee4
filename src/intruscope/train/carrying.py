"""Going on with an adapter that an earlier run trained, under a new head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.live_models import quiet
from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.methods.attached import ADAPTER

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.methods.contract import Attached, Method

_CONVERTED = frozenset({"moves_base", "uneven_ranks", "no_training", "no_static_update"})


def can_go_on(method: Method) -> bool:
    """Whether what a run of this method saves is what the next one can start from.

    Methods that save another form than they train (an ordinary LoRA, pruned ranks) cannot. Full fine-tuning
    needs no adapter: its model is the next one's base.
    """
    kept = method.source == "peft" and method.name != "adalora"  # which saves the ranks that it pruned to
    return kept and not method.departures & _CONVERTED


def go_on(attached: Attached, method: Method, folder: Path) -> None:
    """Put the trained parameters of an earlier run into a method that was just attached, but for what is new.

    Args:
        attached: On the same base, by the same method and options; it is changed.
        method: Of both.
        folder: The model of the earlier run.

    Raises:
        UsageError: the method cannot go on.
        MalformedInput: the folder holds no adapter of this form.
    """
    if not can_go_on(method):
        raise UsageError(
            f"{method.name} cannot continue from a saved adapter: it saves the adapter in another form than "
            "it "
            "trains",
            remedy="merge the update between the tasks instead",
        )
    from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    model: Any = attached.model
    new = tuple(f".{name}." for name in model.peft_config[ADAPTER].modules_to_save or ())
    with quiet():
        state = dict(get_peft_model_state_dict(model, adapter_name=ADAPTER))
        before = load_peft_weights(str(folder), device="cpu")
    for key, tensor in state.items():
        if any(name in key for name in new):
            continue
        if key not in before or before[key].shape != tensor.shape:
            raise MalformedInput(
                f"the adapter has no tensor {printable(key)} of shape {list(tensor.shape)}, so it was "
                "trained with "
                "another method or other options",
                remedy="pass the model of an earlier run with the same --method, --rank and targets",
                file=folder,
            )
        state[key] = before[key]
    with quiet():
        set_peft_model_state_dict(model, state, adapter_name=ADAPTER)
