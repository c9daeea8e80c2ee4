"""transformers' Trainer with additions: a loss of NaN ends the run, and progress is reported."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from intruscope.errors import IncompleteResult, ResourceExhausted
from intruscope.progress import OnProgress, Progress
from intruscope.train import processes
from intruscope.train.sampling import LengthOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intruscope.train.replay import Replay
    from intruscope.train.run_folder import RunFolder

_ALLOCATION = re.compile(r"tried to allocate ([\d.]+ ?\w*)", re.IGNORECASE)


class Diverged(Exception):
    """The loss or a weight became NaN or infinite."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what, step)
        self.what = what
        self.step = step


class Scorer(Protocol):
    """Scores a model in evaluation mode on one process's share of the examples."""

    def __call__(self, model: Any, *, process: int, num_processes: int) -> tuple[int, int]:
        """How many are right, of how many."""


class SteadyTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that stops before a step from a loss that is NaN or infinite.

    Attributes:
        replay: General text that every step also learns from; set before training.

    Args:
        scorer: Gives the accuracy at each evaluation, where it cannot be read off the logits.
    """

    replay: Replay | None = None

    def __init__(self, *args: Any, scorer: Scorer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scorer = scorer
        self._replayed: list[torch.Tensor] = []
        self._replayed_until = -1

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss and the accuracy, over all processes."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self._scorer is not None:
            accelerator = self.accelerator
            right, count = self._scorer(
                accelerator.unwrap_model(self.model),
                process=accelerator.process_index,
                num_processes=accelerator.num_processes,
            )
            sums = torch.tensor([right, count], device=accelerator.device)
            right, count = accelerator.reduce(sums, reduction="sum").tolist()
            metrics["eval_accuracy"] = right / count
            self.log({"eval_accuracy": right / count})
        return metrics

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The order of the examples: theirs, or by length in one that a resumed run repeats."""
        arguments = self.args
        if arguments.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(*args, **kwargs)
        parts = arguments.gradient_accumulation_steps * arguments.world_size
        return LengthOrder(self.train_dataset, batch=arguments.train_batch_size * parts, seed=arguments.seed)

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step's gradients; before its first part, those of the replayed text.

        Raises:
            Diverged: the loss is no number.
        """
        replayed = self._replay_once(model)
        loss: torch.Tensor = super().training_step(model, *args, **kwargs)
        if processes.any_of(not bool(torch.isfinite(loss + replayed))):
            raise Diverged("a loss", self.state.global_step + 1)
        return loss

    def _replay_once(self, model: torch.nn.Module) -> torch.Tensor | float:
        """This process's share of the loss on the replayed text; 0 where the step has replayed it before."""
        step = self.state.global_step
        if self.replay is None or self._replayed_until == step:
            return 0.0
        self._replayed_until = step
        model.train()
        parts = self.args.gradient_accumulation_steps
        share = self.replay.backward(step, self.accelerator, parts=parts)
        self._replayed.append(share)
        return share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Where the loss is logged, the mean loss on the replayed text since then is as well."""
        if "loss" in logs and self._replayed:
            share = torch.stack(self._replayed).mean()
            logs = {**logs, "replay_loss": float(self.accelerator.reduce(share, reduction="sum"))}
            self._replayed.clear()
        super().log(logs, *args, **kwargs)


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Reports progress and records complete checkpoints; none is written with weights that are not finite."""

    def __init__(self, folder: RunFolder, model: torch.nn.Module, on_progress: OnProgress) -> None:
        self._folder = folder
        self._model = model
        self._on_progress = on_progress

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Between a step and its checkpoint."""
        self._on_progress(
            Progress(stage="training", done=state.global_step, total=state.max_steps, unit="steps")
        )
        if control.should_save or control.should_training_stop:

            def trained() -> Iterator[torch.Tensor]:
                return (p for p in self._model.parameters() if p.requires_grad)

            if not all(bool(torch.isfinite(p).all()) for p in trained()):
                raise Diverged("a weight", state.global_step)
            if not processes.are_equal(trained()):
                raise RuntimeError(f"the processes' weights differ at step {state.global_step}")

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """After everything of a checkpoint is there."""
        if state.is_world_process_zero:
            self._folder.checkpoint_done(state.global_step)


def silence(trainer: Trainer) -> None:
    """Nothing is printed but by the command line."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def allocation_asked(error: BaseException) -> str | None:
    """What an error says of the memory that was wanted: empty without a figure, None where it is another."""
    wanted = _ALLOCATION.search(str(error))
    if wanted is not None:
        return f"{wanted.group(1)} more were requested"
    return "" if isinstance(error, (torch.OutOfMemoryError, MemoryError)) else None


@contextmanager
def explained(folder: RunFolder, *, batch: int, max_length: int) -> Iterator[None]:
    """What can go wrong in training, said in our words.

    Raises:
        IncompleteResult: the loss or the weights became NaN or infinite; the last good checkpoint is named.
        ResourceExhausted: no memory for a batch; the figure is named.
    """
    try:
        yield
    except Diverged as error:
        last = folder.last_checkpoint()
        kept = f"the last good checkpoint is {last}" if last is not None else "no checkpoint was written yet"
        failed = IncompleteResult(
            f"{error.what} became NaN or infinite at step {error.step}; {kept}",
            remedy="lower --lr (or leave --bf16 out) and choose another --out",
            file=folder.path,
        )
        failed.already_reported = not processes.is_first()
        raise failed from None
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        wanted = allocation_asked(error)
        if wanted is None:
            raise
        figure = f" ({wanted})" if wanted else ""
        raise ResourceExhausted(
            f"out of memory for a batch of {batch} x {max_length} tokens{figure}",
            remedy="lower --max-length, or --batch; --accumulate keeps the batch and computes it in parts",
            file=folder.path,
        ) from error
