"""AdaLoRA: LoRA as ``B diag(E) A``; the least important directions are pruned during training.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512. Every
matrix starts with ``start_rank`` directions; at the end the mean rank is ``rank``. PEFT prunes only if it is
called in every step, after the optimiser and before the gradients are cleared; a callback does that. The
penalty that keeps A and B orthogonal is part of the loss in training, but not in evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError
from intruscope.methods.attached import ADAPTER, PeftAttached, attach_peft, load_peft, tuner_layers
from intruscope.methods.contract import Method, Parameter
from intruscope.methods.lora import DROPOUT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn
    from transformers import TrainerCallback

    from intruscope.methods.contract import Options, Setting

_AVERAGES = {"sensitivity": "exp_avg_ipt", "uncertainty": "exp_avg_unc"}
"""Names in the optimiser's state of the averages that PEFT keeps in its allocator."""
_PAPER_PER_DATASET = "ours: the paper sets it for each data set; PEFT's is 0"
RANK = Parameter(
    name="rank", kind="int", default=8, least=1,
    source="PEFT (AdaLoraConfig, target_r)", meaning="Mean rank at the end.",
)  # fmt: skip
START_RANK = Parameter(
    name="start_rank", kind="int", default=12, least=1,
    source="PEFT (AdaLoraConfig, init_r)", meaning="Rank of every matrix at the start.",
)  # fmt: skip
ALPHA = Parameter(
    name="alpha", kind="float", default=8.0, least=0.0,
    source="PEFT (AdaLoraConfig)", meaning="The update is scaled by alpha / start_rank, whatever is pruned.",
)  # fmt: skip
WARMUP = Parameter(
    name="warmup_share", kind="float", default=0.1, least=0.0, most=0.9,
    source=_PAPER_PER_DATASET, meaning="Share of the steps before pruning begins.",
)  # fmt: skip
FINAL = Parameter(
    name="final_share", kind="float", default=0.3, least=0.0, most=0.9,
    source=_PAPER_PER_DATASET, meaning="Share of the steps after pruning has ended.",
)  # fmt: skip
EVERY = Parameter(
    name="every", kind="int", default=1, least=1,
    source="PEFT (AdaLoraConfig, deltaT)", meaning="Steps between prunings.",
)  # fmt: skip
ORTHOGONALITY = Parameter(
    name="orthogonality", kind="float", default=0.5, least=0.0,
    source="PEFT (AdaLoraConfig, orth_reg_weight)", meaning="Weight of the penalty in the training loss.",
)  # fmt: skip


class AdaLoraAttached(PeftAttached):
    """LoRA whose ranks are allocated in training.

    Args:
        model: As the base class.
        allocates: Ranks are still to be allocated; a loaded one keeps those that it has.
        rest: As the base class.
    """

    def __init__(self, model: Any, *, allocates: bool = True, **rest: Any) -> None:
        super().__init__(model, **rest)
        self._allocates = allocates
        _leave_penalty_out_of_evaluation(model.base_model)
        for layer in tuner_layers(model).values():
            # The rank at the start, which scales the update and is not saved. Where PEFT casts it to the
            # base's dtype, it becomes a parameter that is trained.
            layer.ranknum[ADAPTER].requires_grad_(False)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Tell PEFT of each step."""
        return (_allocator(self.model),) if self._allocates else ()

    def _write(self, folder: Path) -> None:
        """Without the directions that are pruned."""
        config = self.model.peft_config[ADAPTER]
        config.rank_pattern = _kept(self.model)
        try:
            super()._write(folder)
        finally:
            config.rank_pattern = None


def _kept(model: Any) -> dict[str, list[bool]] | None:
    """PEFT's rank pattern, read from the zeros in E; None if nothing was pruned, or nothing trained yet."""
    parts = {f"{name}.lora_E.{ADAPTER}": layer.lora_E[ADAPTER] for name, layer in tuner_layers(model).items()}
    kept = {name: (part.detach() != 0).view(-1).tolist() for name, part in parts.items()}
    numbers = [number for row in kept.values() for number in row]
    return kept if any(numbers) and not all(numbers) else None


def _allocator(model: Any) -> TrainerCallback:
    """Calls PEFT in every step.

    PEFT's own record of what is pruned would make Trainer's checkpoints smaller than the model that they are
    to be loaded into, so that it is given only for the time of the call; and the smoothed sensitivities are
    kept with the optimiser's state, which is saved and restored with it.
    """
    from transformers import TrainerCallback

    tuner = model.base_model
    config = model.peft_config[ADAPTER]

    class Allocator(TrainerCallback):  # type: ignore[misc]
        """After the optimiser's step, before the gradients are cleared."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:  # noqa: ARG002
            # Once ranks are final, what a step revives is zeroed again; the step itself hides what was zero.
            config.rank_pattern = _kept(model) if _is_final(state.global_step + 1) else None

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:  # noqa: ARG002
            step, moments = (
                state.global_step + 1,
                rest["optimizer"].state,
            )  # Trainer counts it after this event
            allocator = tuner.rankallocator
            parameters = {name: p for name, p in tuner.model.named_parameters() if p in moments}
            if not allocator.ipt:
                _restore(allocator, parameters, moments)
            if config.rank_pattern is not None or not _is_final(step):
                tuner.update_and_allocate(step)
            config.rank_pattern = None
            for key, attribute in _AVERAGES.items():
                for name, value in getattr(allocator, attribute).items():
                    moments[parameters[name]][key] = value

    def _is_final(step: int) -> bool:
        return bool(step > config.total_step - config.tfinal)

    return Allocator()


def _restore(allocator: Any, parameters: Mapping[str, nn.Parameter], moments: Mapping[Any, Any]) -> None:
    """Give PEFT its averages back from the optimiser's state, where a run that was stopped goes on."""
    for name, parameter in parameters.items():
        for key, attribute in _AVERAGES.items():
            if key in moments[parameter]:
                getattr(allocator, attribute)[name] = moments[parameter][key]
                allocator.ipt[name] = moments[parameter][key]  # replaced by the next gradient's


def _leave_penalty_out_of_evaluation(tuner: Any) -> None:
    """PEFT adds its penalty to every loss; in evaluation mode its weight is zero for the time of the call."""
    config = tuner.peft_config[ADAPTER]
    weight = config.orth_reg_weight

    def before(module: nn.Module, _inputs: Any) -> None:
        config.orth_reg_weight = weight if module.training else 0.0

    def after(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        config.orth_reg_weight = weight

    tuner.register_forward_pre_hook(before)
    tuner.register_forward_hook(after, always_call=True)


def num_trainable(num_out: int, num_in: int, options: Options) -> int:
    """A, B and E at the start; what is pruned is zero, and dropped when it is saved."""
    return int(options["start_rank"]) * (num_out + num_in + 1)


def max_rank(num_out: int, num_in: int, options: Options) -> int:
    """Of a matrix that loses nothing."""
    return min(int(options["start_rank"]), num_out, num_in)


def attach(model: nn.Module, setting: Setting, options: Options) -> PeftAttached:
    """Put AdaLoRA on a model.

    Raises:
        UsageError: the number of steps is not known, too few, or more rank is asked for than there is.
    """
    from peft import AdaLoraConfig

    total = setting.total_steps
    if total is None:
        raise UsageError(
            "AdaLoRA prunes by a schedule and needs the number of steps",
            remedy="set total_steps, or choose another method",
        )
    if int(options["rank"]) >= int(options["start_rank"]):
        raise UsageError(
            f"rank {options['rank']} must be less than start_rank, which is {options['start_rank']}",
            remedy="raise start_rank (the paper uses 1.5 times the rank)",
            tensor="rank",
        )
    first, last = int(total * float(options["warmup_share"])), int(total * float(options["final_share"]))
    if first + last >= total:
        raise UsageError(
            f"no step is left for pruning: of {total} steps, {first} come before it and {last} after",
            remedy="lower warmup_share or final_share, or train longer",
        )

    def make_config(**given: Any) -> Any:
        # A model without a task of PEFT's would be run past the tuner, and so without the penalty.
        given["task_type"] = given["task_type"] or "FEATURE_EXTRACTION"
        return AdaLoraConfig(
            target_r=options["rank"],
            init_r=options["start_rank"],
            lora_alpha=options["alpha"],
            lora_dropout=options["dropout"],
            tinit=first,
            tfinal=last,
            deltaT=options["every"],
            orth_reg_weight=options["orthogonality"],
            total_step=total,
            **given,
        )

    return attach_peft(model, setting, make_config, method=METHOD, kind=AdaLoraAttached)


def load(model: nn.Module, folder: Path) -> PeftAttached:
    """Put a saved AdaLoRA on its base, with the ranks that it has."""
    from safetensors.torch import load_file

    attached = load_peft(model, folder, AdaLoraAttached, allocates=False)
    # PEFT makes pruned factors anew in the base's dtype, and so rounds them when that is a half precision.
    saved = load_file(str(folder / "adapter_model.safetensors"))
    for name, layer in tuner_layers(attached.model).items():
        for part in ("lora_A", "lora_B", "lora_E"):
            getattr(layer, part)[ADAPTER].data = saved[f"base_model.model.{name}.{part}"].to(
                layer.get_base_layer().weight.device
            )
    return attached


METHOD = Method(
    name="adalora",
    title="AdaLoRA",
    paper="arXiv 2303.10512",
    source="peft",
    cost="As LoRA at start_rank, plus a smoothed sensitivity for every trainable parameter during training.",
    how_updated="(alpha / start_rank) B diag(E) A.",
    parameters=(RANK, START_RANK, ALPHA, DROPOUT, WARMUP, FINAL, EVERY, ORTHOGONALITY),
    documentation=__doc__ or "",
    attach=attach,
    load=load,
    num_trainable=num_trainable,
    max_rank=max_rank,
)
