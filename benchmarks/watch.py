"""Claim: IntruderWatch takes at most 2% of the training time of MiniLM at one look per 50 steps.

A BERT of MiniLM's shape (or ``--model``) with a classifier on random tokens: batch 32, 40 tokens, bf16
autocast, as in the pilots. Full fine-tuning and LoRA r = 8, both at learning rates that move the weights. The
training time is the time of the Trainer minus the looks. The first look decomposes the base and is listed
separately. Both are given in wall time and in processor time: if other work shares the cores, only the latter
shows what a look costs (with one thread, the two shares are the same on a quiet machine).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from benchmarks.common import heavy_tailed, publish
from intruscope.train import IntruderWatch

LENGTH, BATCH, EVERY = 40, 32, 50


class RandomTokens(torch.utils.data.Dataset):
    """Sequences whose label is the parity of their first word."""

    def __init__(self, count: int, words: int) -> None:
        self.ids = torch.randint(1000, words, (count, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"input_ids": self.ids[index], "labels": int(self.ids[index, 0]) % 2}


def make_model(name: str | None) -> torch.nn.Module:
    torch.manual_seed(0)
    if name is not None:
        return transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(1)
    for _, parameter in model.bert.encoder.named_parameters():
        if parameter.ndim == 2:  # untrained weights have no clear top of the spectrum
            parameter.data = 0.05 * heavy_tailed(*parameter.shape, generator)
    return model


class Timed(IntruderWatch):
    """A watch that also records the processor time of each look."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.processor_seconds: list[float] = []

    def _look(self, *args: Any) -> None:
        started = time.process_time()
        super()._look(*args)
        self.processor_seconds.append(time.process_time() - started)


def measure(name: str | None, method: str, steps: int, folder: Path) -> dict[str, object]:
    """Seconds for a run and for its looks."""
    model = make_model(name)
    words = model.config.vocab_size
    if method == "lora":
        model = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
        )
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, bf16=True, report_to=[],
        learning_rate=1e-4 if method == "full" else 2e-3, save_strategy="no", logging_steps=10**9,
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=RandomTokens(BATCH * steps, words))
    watch = Timed(trainer, every=EVERY)
    trainer.add_callback(watch)
    started, processor_started = time.perf_counter(), time.process_time()
    trainer.train()
    whole, processor = time.perf_counter() - started, time.process_time() - processor_started
    first, *later = [look.seconds for look in watch.looks]
    training = whole - first - sum(later)
    processor_later = watch.processor_seconds[1:]
    processor_training = processor - sum(watch.processor_seconds)
    ways = [matrix.how for look in watch.looks[1:] for matrix in look.matrices]
    return {
        "method": method,
        "matrices": len(watch.looks[0].matrices),
        "seconds_per_step": training / steps,
        "seconds_first_look": first,
        "seconds_per_look": statistics.median(later),
        "share_of_training": statistics.median(later) / (EVERY * training / steps),
        "processor_seconds_per_step": processor_training / steps,
        "processor_seconds_per_look": statistics.median(processor_later),
        "processor_share_of_training": statistics.median(processor_later)
        / (EVERY * processor_training / steps),
        "share_of_this_run_first_look_included": (first + sum(later)) / training,
        "warm_share": ways.count("warm") / len(ways),
        "intruders_at_the_end": len(watch.looks[-1].intruders),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        runs = [
            measure(arguments.model, method, arguments.steps, Path(name) / method)
            for method in ("full", "lora")
        ]
    publish("watch", {"steps": arguments.steps, "threads": arguments.threads, "every": EVERY, "runs": runs})


if __name__ == "__main__":
    main()
