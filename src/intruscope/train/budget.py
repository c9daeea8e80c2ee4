"""A forgetting budget: above it, training stops or goes on at a lower rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from intruscope.train.settings import BudgetExceeded, OnBudget

if TYPE_CHECKING:
    from intruscope.train.look_file import Look
    from intruscope.train.watch import IntruderWatch

RATE_FACTOR = 0.5


class ForgettingBudget(TrainerCallback):  # type: ignore[misc]
    """Acts on what the watch measures; add it to the Trainer after the watch.

    A resumed run needs no state of this class: the looks are in their file, and a lowered rate is in the
    checkpoint.

    Args:
        watch: That measures forgetting.
        limit: Largest forgetting that is allowed, in nats per token.
        on_budget: ``stop`` ends training at the first look above the limit; ``lower-rate`` halves the
            learning rate at every look above it.
    """

    def __init__(self, watch: IntruderWatch, limit: float, on_budget: OnBudget) -> None:
        self._watch = watch
        self._limit = limit
        self._on_budget = on_budget

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Act if there was a look after this step and it is above the budget."""
        look = self._watch.looks[-1]
        if look.step != state.global_step or not self._is_above(look):
            return
        if self._on_budget == "lower-rate":
            _lower(rest["optimizer"], rest["lr_scheduler"])
            return
        control.should_training_stop = True
        control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
        control.should_log = True
        # A run that went on from a checkpoint of this step would not look again, and so would not stop.
        control.should_save = False

    def exceeded(self, max_steps: int) -> tuple[BudgetExceeded, ...]:
        """The looks above the budget, in order.

        Args:
            max_steps: Number of steps of the whole run, after which nothing is left to be done.
        """
        return tuple(
            self._exceeded(look, acts=look.step < max_steps)
            for look in self._watch.looks
            if self._is_above(look)
        )

    def _exceeded(self, look: Look, *, acts: bool) -> BudgetExceeded:
        assert look.forgetting is not None
        interval = self._watch.forgetting(look)
        return BudgetExceeded(
            step=look.step,
            forgetting=look.forgetting,
            low=interval.low if interval is not None else None,
            high=interval.high if interval is not None else None,
            action="none" if not acts else "stopped" if self._on_budget == "stop" else "rate halved",
        )

    def _is_above(self, look: Look) -> bool:
        return look.forgetting is not None and look.forgetting > self._limit


def _lower(optimizer: Any, scheduler: Any) -> None:
    """Multiply the learning rate by :data:`RATE_FACTOR`, now and in the rest of the schedule."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # without accelerate's wrapper
    for group in optimizer.param_groups:
        group["lr"] *= RATE_FACTOR
    scheduler.base_lrs = [rate * RATE_FACTOR for rate in scheduler.base_lrs]
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the Trainer logs
