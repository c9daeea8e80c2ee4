"""Claim: a training step of ``intruscope tune`` takes at most 3% more than one of plain transformers + PEFT.

A model of MiniLM's shape (or ``--model``) with a classifier on random tokens: batch 32, 40 tokens, bfloat16
autocast; full fine-tuning with frozen embeddings, and LoRA r = 8 on every linear layer. One side is what
``tune`` builds with its watch off (the method attached, SteadyTrainer, Keeper with progress). The other is a
plain Trainer with the same model, batches and arguments and its own optimiser. Neither checks its logs for
NaN.

Both run in one process and alternate every few steps; the order alternates from round to round. The figure of
a round is the ratio of the two medians, in processor time and in wall time, from step to step, including data
loading and callbacks. The result is the median over the rounds with its distribution-free 95% interval.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, default_data_collator

from benchmarks.common import publish
from benchmarks.watch import BATCH, LENGTH, RandomTokens, make_model
from intruscope.methods.registry import find
from intruscope.train.data import Examples, TrainingData
from intruscope.train.loading import Loaded
from intruscope.train.plan import training_arguments
from intruscope.train.run import attach, trainer_for
from intruscope.train.run_folder import RunFolder
from intruscope.train.trainer import Keeper

RATES = {"full": 1e-4, "lora": 2e-3}


class StepTimes(TrainerCallback):
    """Processor and wall time from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Discard the times of the previous turn."""
        self.marks = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record both clocks."""
        self.marks.append((time.process_time(), time.perf_counter()))

    def medians(self) -> tuple[float, float]:
        """Medians of both times over the turn, without its first step."""
        periods = zip(self.marks, self.marks[1:], strict=False)
        differences = [(b[0] - a[0], b[1] - a[1]) for a, b in periods]
        return statistics.median(d[0] for d in differences), statistics.median(d[1] for d in differences)


def ours(name: str | None, method: str, arguments: Any, examples: Examples, folder: RunFolder) -> Trainer:
    """The Trainer that ``intruscope tune`` builds, without a watch."""
    loaded = Loaded(
        model=make_model(name), tokenizer=None, labels=("0", "1"), kind="classification", drawn=()
    )
    training = TrainingData(examples=examples, collate=default_data_collator, num_cut=0)
    found = find(method)
    options = found.options({} if method == "full" else {"rank": 8, "alpha": 16})
    attached = attach(loaded, found, options, training, arguments)
    trainer = trainer_for(attached, loaded, arguments, training)
    trainer.add_callback(Keeper(folder, attached.model, lambda _what, _done, _all: None))
    return trainer


def plain(name: str | None, method: str, arguments: Any, examples: Examples) -> Trainer:
    """What a user of plain transformers and PEFT writes."""
    model = make_model(name)
    if method == "lora":
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
        model = get_peft_model(model, config)
    else:
        model.get_input_embeddings().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.requires_grad_(False)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=examples, data_collator=default_data_collator
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def measure(name: str | None, method: str, rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Run both sides in turns."""
    words = make_model(name).config.vocab_size
    tokens = RandomTokens(BATCH * steps, words)
    examples = Examples([tokens[i] for i in range(len(tokens))])
    arguments = training_arguments(
        {
            "accumulate": 1, "processes": 1, "batch": BATCH, "steps": steps, "epochs": None, "seed": 0,
            "rate": RATES[method], "schedule": "linear", "warmup": 0.06, "weight_decay": 0.0, "bf16": True,
            "save_every": 10**6, "eval_every": None,
        },
        folder / "checkpoints",
        len(examples),
    )  # fmt: skip
    arguments.save_strategy = "no"
    with RunFolder(folder / method, {"method": method}) as run_folder:
        sides: dict[str, Trainer] = {
            "intruscope": ours(name, method, arguments, examples, run_folder),
            "plain": plain(name, method, arguments, examples),
        }
        times = {side: StepTimes() for side in sides}
        for side, trainer in sides.items():
            trainer.add_callback(times[side])
            trainer.train()  # compiles and fills caches
        numbers = {
            side: sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            for side, trainer in sides.items()
        }
        assert numbers["intruscope"] == numbers["plain"], numbers
        found: list[dict[str, tuple[float, float]]] = []
        for number in range(rounds):
            for side in sorted(sides, reverse=number % 2 == 1):
                sides[side].train()
            found.append({side: times[side].medians() for side in sides})
    return {
        "method": method,
        "rounds": rounds,
        "steps_per_turn": steps,
        "num_trained": numbers["plain"],
        **{
            f"{side}_{clock}_seconds_per_step": statistics.median(each[side][i] for each in found)
            for side in sides
            for i, clock in enumerate(("processor", "wall"))
        },
        **{
            f"{clock}_ratio": median_interval([each["intruscope"][i] / each["plain"][i] for each in found])
            for i, clock in enumerate(("processor", "wall"))
        },
    }


def median_interval(values: list[float], level: float = 0.95) -> dict[str, float]:
    """The median with its interval from the sign test; the whole range if there are few values."""
    ordered, count, cut, tail = sorted(values), len(values), 0, 0.5 ** len(values)
    while cut < count // 2 and tail <= (1 - level) / 2:
        cut += 1
        tail += math.comb(count, cut) / 2**count
    return {
        "median": statistics.median(values),
        "low": ordered[max(cut - 1, 0)],
        "high": ordered[min(count - cut, count - 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="steps per turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        runs = [
            measure(arguments.model, method, arguments.rounds, arguments.steps, Path(name))
            for method in RATES
        ]
    record = {"threads": arguments.threads, "batch": BATCH, "tokens": LENGTH, "runs": runs}
    publish("step_time", record)


if __name__ == "__main__":
    main()
